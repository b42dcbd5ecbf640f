"""The `depi` command: one entry per verb, each imported only when it is called."""

import contextlib
import difflib
import errno
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Never

from depi.errors import UserError, machine_error, message
from depi.log import never_silent, start_logging
from depi.other_programs import verb_hint

# verb: (module with `main(args) -> exit status`, one line of help)
VERBS = {
    "demo": ("depi.demo.run", "run the whole pipeline offline on an embedded Hub"),
    "collect-ids": ("depi.catalog.collect", "find and judge the SO-100 datasets of the Hub"),
    "catalog": ("depi.catalog.browse", "show the catalogue: show, stats, diff"),
    "annotate": ("depi.annotate.annotate", "write task texts and camera views by a model, as sidecars"),
    "report": ("depi.catalog.report", "write the catalogue as one web page"),
    "view": ("depi.catalog.view", "look at one episode: LeRobot's viewer, or an mp4"),
    "prepare": ("depi.training.prepare", "write training-ready images, so that training decodes no video"),
    "advantage": (
        "depi.recap.annotate_advantage",
        "label the frames that are better than a value function expects",
    ),
    "value": ("depi.recap.plot", "draw the values that a value function gives the frames of an episode"),
    "samples": ("depi.training.samples", "list and draw what a training step saw, or one frame"),
    "train": ("depi.train", "train pi0 or another policy, in one process"),
    "plot": ("depi.training.plot", "draw loss, learning rate and throughput of runs"),
    "estimate": ("depi.training.estimate_command", "estimate the memory that a training configuration needs"),
    "sim": ("depi.sim.record", "record simulated SO-101 datasets, test the scripted experts"),
    "eval": ("depi.evaluation.evaluate", "roll a checkpoint out in a simulator"),
    "compare": ("depi.evaluation.compare", "compare two evaluations, seed by seed, videos side by side"),
    "recap": ("depi.recap.loop", "improve a policy from its own successes and failures, in a loop"),
    "doctor": ("depi.doctor", "check what works on this machine, and what to type where it does not"),
    "upload": ("depi.training.upload", "publish a checkpoint with its model card"),
    "hub": ("depi.hub.server.serve", "serve an embedded Hub, for offline machines"),
}

# These print what they do from the beginning.
OUTSPOKEN = {"demo", "hub"}

# A file where a folder should be, or the other way round.
WRONG_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def usage() -> str:
    """Return the text of `depi --help`."""
    verbs = "\n".join(f"  {verb:<12} {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: depi VERB [--flag=value ...]\n\n"
        f"{verbs}\n\n"
        "`depi VERB --help` lists a verb's flags. On several GPUs, `depi train` is a script:\n"
        "  accelerate launch depi/train.py --num_datasets=1500"
    )


def _no_verb(word: str) -> str:
    hint = verb_hint(word)
    if hint is not None:
        return f"depi has no verb {word!r}: {hint}"
    close = difflib.get_close_matches(word, VERBS, n=1)
    said = f"did you mean {close[0]}? There are" if close else "choose one of"
    return f"depi has no verb {word!r}: {said} {', '.join(VERBS)}"


def run(command: Callable[[list[str]], int], args: Sequence[str]) -> int:
    """Call `command`; an error of the user or the disk becomes one sentence and status 2."""
    try:
        return command(list(args))
    except UserError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # handlers of other signals pass the number
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        sys.stderr.close()
        return 141
    except OSError as error:
        fault = machine_error(error)
        if fault is None and error.errno not in WRONG_PLACE:
            raise
        sentence = fault or f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
        print(f"error: {sentence}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb named by the first argument and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        from depi import __version__

        print(f"depi {__version__}")
        return 0
    verb, *rest = args
    if verb not in VERBS:
        print(f"error: {_no_verb(verb)}", file=sys.stderr)
        return 2
    start_logging()
    module, line = VERBS[verb]
    with contextlib.nullcontext() if verb in OUTSPOKEN else never_silent(f"depi {verb}: {line}"):
        return run(lambda flags: importlib.import_module(module).main(flags), rest)


def leave(status: int) -> Never:
    """End the process: at once where something went wrong or a signal came.

    The interpreter would wait for threads that still download or try again.
    """
    if status not in (2, 3, 130, 143):
        sys.exit(status)
    for child in multiprocessing.active_children():  # a pool's processes would wait for work for ever
        child.terminate()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def script() -> Never:
    """The `depi` command."""
    leave(main())


if __name__ == "__main__":
    script()
