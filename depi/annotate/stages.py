"""The stages of one episode: an instruction, its refinement, and the views of the cameras."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from depi.annotate.answers import AnswerError, fits, parse, schema
from depi.annotate.backend import MAX_TOKENS, Backend, BackendError, Question
from depi.annotate.checks import STABLE, denied_objects, gives_orders, problems, similarity, tidy
from depi.annotate.episode_journal import Result, now
from depi.annotate.frames import Clip, Images
from depi.annotate.templates import INSTRUCTION, REFINEMENT, SYSTEM, VIEWS, Prompts, as_list
from depi.catalog.text import clean

LOW_CONFIDENCE = "low_confidence"
WITHHELD = "recorded_text_withheld"
VIEWS_FAILED = "views_failed"
_ATTEMPTS = 2
_REMINDER = "\n\nYour answer must be the JSON object alone, complete, with exactly these keys."

# Factors on the confidence that the model states, and the largest confidence; see `judge`.
_UNVERIFIED, _UNSTABLE, _DENIED, _MOST = 0.8, 0.7, 0.3, 0.98


@dataclass(frozen=True)
class Job:
    """The questions to ask about one episode.

    clip: the frames to show; None where the annotator needs none
    recorded: the recorded task text, on one line
    cameras: camera keys, in the order of the images
    stages: which of STAGES to ask
    before: an earlier result, whose answers of the other stages are reused
    """

    repo_id: str
    state: str | None
    episode: int
    recorded: str
    cameras: tuple[str, ...]
    stages: frozenset[str]
    clip: Clip | None = None
    before: Result | None = None


@dataclass(frozen=True)
class Annotator:
    """Asks a back end about episodes.

    prompts: what to ask
    max_refinements: the most refinements, fewer where the text no longer changes
    min_confidence: below it the recorded text is kept
    """

    backend: Backend
    prompts: Prompts
    max_refinements: int = 2
    min_confidence: float = 0.5

    def __call__(self, job: Job, images: Images) -> Result:
        """Ask the job's stages.

        Raises:
            BackendError: one that the result needs was not answered.
            UserError: no question will ever be answered.
        """
        conversation = _Conversation(self.backend, self.prompts.texts[SYSTEM], labelled(images))
        withheld = gives_orders(job.recorded)
        instruction, refinements = self._text_stages(job, conversation, "" if withheld else job.recorded)
        flags = [WITHHELD] if withheld else []
        views: Mapping[str, str] = job.before.views if job.before is not None else {}
        if VIEWS in job.stages:
            try:
                views = self._views(job, conversation)
            except BackendError:
                views = {}
                flags.append(VIEWS_FAILED)
        verdict = judge(instruction, refinements, self.prompts.language, self.min_confidence)
        return Result(
            episode=job.episode,
            revision=job.state,
            backend=self.backend.name,
            model=self.backend.model,
            prompts={**(job.before.prompts if job.before else {}), **self._asked(job)},
            recorded=job.recorded,
            proposed=verdict.text or None,
            task=verdict.text if verdict.trusted else None,
            confidence=verdict.confidence,
            flags=(*flags, *verdict.flags),
            instruction=instruction,
            refinements=tuple(refinements),
            views=views,
            frames=dict.fromkeys(images, job.clip.frames) if job.clip is not None else {},
            tokens={"prompt": conversation.prompt_tokens, "completion": conversation.completion_tokens},
            requests=conversation.requests,
            seconds=round(time.monotonic() - conversation.started, 3),
            at=now(),
        )

    def _asked(self, job: Job) -> dict[str, str]:
        return {stage: self.prompts.versions[stage] for stage in job.stages}

    def _text_stages(
        self, job: Job, conversation: "_Conversation", recorded: str
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        # A journal that was pulled may hold anything where answers should be.
        if INSTRUCTION in job.stages or job.before is None or not fits(INSTRUCTION, job.before.instruction):
            first = conversation.ask(INSTRUCTION, self.prompts.render(INSTRUCTION, recorded=recorded))
        else:
            first, looks = dict(job.before.instruction or {}), job.before.refinements
            if REFINEMENT not in job.stages and all(fits(REFINEMENT, answer) for answer in looks):
                return first, [dict(answer) for answer in looks]
        return first, self._refine(conversation, first)

    def _refine(self, conversation: "_Conversation", first: Mapping[str, Any]) -> list[dict[str, Any]]:
        text, objects, answers = tidy(first["instruction"]), list(first["objects"]), []
        for _ in range(self.max_refinements):
            asked = self.prompts.render(REFINEMENT, instruction=text, objects=as_list(objects))
            answers.append(conversation.ask(REFINEMENT, asked))
            better = tidy(answers[-1]["instruction"])
            if similarity(text, better) >= STABLE:
                break
            text, objects = better, list(answers[-1]["seen"]) or objects
        return answers

    def _views(self, job: Job, conversation: "_Conversation") -> dict[str, str]:
        names = {camera_name(number): key for number, key in enumerate(job.cameras)}
        short = {name: clean(key.removeprefix("observation.images."), 60) for name, key in names.items()}
        asked = self.prompts.render(
            VIEWS,
            cameras=", ".join(names),
            names=", ".join(f"{name} is {key!r}" for name, key in short.items()),
        )
        answer = conversation.ask(VIEWS, asked, tuple(names))
        return {names[name]: view for name, view in answer["views"].items()}


@dataclass
class _Conversation:
    """All questions about one episode, and what they cost."""

    backend: Backend
    system: str
    images: tuple[tuple[str, bytes], ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    started: float = field(default_factory=time.monotonic)

    def ask(self, stage: str, text: str, cameras: tuple[str, ...] = ()) -> dict[str, Any]:
        """Ask, and return the checked answer; an answer that cannot be parsed is asked for once more."""
        limit, problem = MAX_TOKENS, ""
        for attempt in range(_ATTEMPTS):
            asked = text + (_REMINDER if attempt else "")
            question = Question(stage, self.system, self.images, asked, schema(stage, cameras), limit)
            reply = self.backend.ask(question)
            self.requests += 1
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            try:
                return parse(stage, reply.text, cameras)
            except AnswerError as error:
                problem = f"{error} (cut off)" if reply.cut else str(error)
                limit *= 2 if reply.cut else 1
        raise BackendError(f"{stage}: {problem}")


def camera_name(number: int) -> str:
    """The name of a camera in prompts; its recorded name is untrusted text."""
    return f"camera_{number + 1}"


def labelled(images: Images) -> tuple[tuple[str, bytes], ...]:
    """The images in the order in which they are shown, each with its label."""
    return tuple(
        (f"{camera_name(number)}, moment {moment + 1} of {len(jpegs)}:", jpeg)
        for number, jpegs in enumerate(images.values())
        for moment, jpeg in enumerate(jpegs)
    )


@dataclass(frozen=True)
class Verdict:
    """The text that results from the answers, and whether to use it; see `judge`."""

    text: str
    trusted: bool
    confidence: float
    flags: tuple[str, ...]


def judge(
    first: Mapping[str, Any], refinements: list[dict[str, Any]], language: str, min_confidence: float
) -> Verdict:
    """The final text of the stages, whether to use it, and the reasons against it.

    The confidence is the lowest that the model stated, at most 0.98. It is lowered where the refinement
    changed the text (by half of the difference), still changed it at its last step, does not see an object
    that the text names, or was not asked. A text that fails a check has confidence 0.
    """
    texts = [tidy(answer["instruction"]) for answer in (first, *refinements)]
    text, flags = texts[-1], [f"check:{name}" for name in problems(texts[-1], language)]
    confidence = min(_MOST, *(float(answer["confidence"]) for answer in (first, *refinements)))
    if not refinements:
        flags.append("not_verified")
        confidence *= _UNVERIFIED
    else:
        if (agreement := similarity(texts[0], text)) < STABLE:
            flags.append("revised")
            confidence *= 0.5 + 0.5 * agreement
        if similarity(texts[-2], text) < STABLE:
            flags.append("unstable")
            confidence *= _UNSTABLE
        if denied := denied_objects(text, refinements[-1]["not_seen"]):
            flags.append(f"object_not_seen:{clean(', '.join(denied), 80)}")
            confidence *= _DENIED
    if any(flag.startswith("check:") for flag in flags):
        confidence = 0.0
    confidence = round(confidence, 3)
    trusted = bool(text) and confidence >= min_confidence and confidence > 0
    return Verdict(text, trusted, confidence, tuple(flags if trusted else [*flags, LOW_CONFIDENCE]))
