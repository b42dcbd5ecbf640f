"""A model on this machine, through transformers: it answers questions of many threads in batches."""

import io
import logging
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from depi.annotate.backend import BackendError, Question, Reply
from depi.catalog.text import clean
from depi.errors import UserError
from depi.hub.client.retry import cache_error

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen3-VL-8B-Instruct"
_GATHER_SECONDS = 0.05


@dataclass(frozen=True)
class LocalConfig:
    """Which model, and how.

    model: id or folder
    batch_size: questions at a time
    device: None for the GPU if there is one
    """

    model: str = DEFAULT_MODEL
    batch_size: int = 8
    device: str | None = None


class LocalModel:
    """The model; see `depi.annotate.backend.Backend`. bfloat16 on a GPU, float32 on a CPU, fused attention.

    It does not enforce the JSON schema: `depi.annotate.answers.parse` checks the answers. No code of the
    model's repository is run, and weights are read from safetensors only.

    Raises:
        UserError: there is no such model, or it takes no images.
    """

    name = "transformers"

    def __init__(self, config: LocalConfig) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            self._processor: Any = AutoProcessor.from_pretrained(config.model, trust_remote_code=False)
            self._network: Any = AutoModelForImageTextToText.from_pretrained(
                config.model,
                dtype=kind,
                attn_implementation="sdpa",
                trust_remote_code=False,
                use_safetensors=True,
            )
            self._network.to(device).eval()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = UserError(f"--model={config.model} cannot be loaded: {clean(error, 300)}")
            raise cache_error(error) or reason from None
        if not hasattr(self._processor, "tokenizer"):
            raise UserError(f"--model={config.model} takes no images")
        self._processor.tokenizer.padding_side = "left"
        self._start(config)

    def _start(self, config: LocalConfig) -> None:
        self.config, self.model = config, config.model
        self._questions: queue.Queue[tuple[Question, Future[Reply]] | None] = queue.Queue()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._serve, name="depi-model", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> Reply:
        """See `depi.annotate.backend.Backend`."""
        answer: Future[Reply] = Future()
        with self._lock:
            if self._closed:
                raise BackendError("the model was stopped")
            self._questions.put((question, answer))
        return answer.result()

    def close(self) -> None:
        """Stop after the batch that is being answered; the other questions get no answer."""
        with self._lock:
            self._closed = True
            with suppress(queue.Empty):
                while True:
                    if (waiting := self._questions.get_nowait()) is not None:
                        waiting[1].set_exception(BackendError("the model was stopped"))
            self._questions.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (first := self._questions.get()) is not None:
            batch = [first]
            with suppress(queue.Empty):
                while len(batch) < self.config.batch_size:
                    following = self._questions.get(timeout=_GATHER_SECONDS)
                    if following is None:
                        self._questions.put(None)
                        break
                    batch.append(following)
            self._answer(batch)

    def _answer(self, batch: list[tuple[Question, Future[Reply]]]) -> None:
        """Answer a batch; one that does not fit into memory is halved."""
        import torch

        try:
            replies = self._generate([question for question, _ in batch])
        except torch.OutOfMemoryError:
            if len(batch) > 1:
                half = len(batch) // 2
                logger.warning("%s questions do not fit into memory at a time: halved", len(batch))
                self._answer(batch[:half])
                self._answer(batch[half:])
                return
            batch[0][1].set_exception(BackendError("the question does not fit into the GPU's memory"))
        except Exception as error:  # the threads that wait must get an answer whatever a model raises
            for _, answer in batch:
                answer.set_exception(BackendError(f"the model failed: {clean(error, 200)}"))
        else:
            for (_, answer), reply in zip(batch, replies, strict=True):
                answer.set_result(reply)

    def _generate(self, questions: list[Question]) -> list[Reply]:
        import torch

        inputs = self._processor.apply_chat_template(
            [_messages(question) for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        ).to(self._network.device)
        limit = max(question.max_tokens for question in questions)
        with torch.inference_mode():
            output = self._network.generate(**inputs, max_new_tokens=limit, do_sample=False)
        prompt = inputs["input_ids"].shape[1]
        asked = inputs["attention_mask"].sum(1).tolist()
        ends = {self._processor.tokenizer.eos_token_id, self._processor.tokenizer.pad_token_id}
        replies = []
        for tokens, prompt_tokens in zip(output[:, prompt:].tolist(), asked, strict=True):
            said = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            text = self._processor.tokenizer.decode(tokens[:said], skip_special_tokens=True)
            replies.append(Reply(text, int(prompt_tokens), said, cut=said >= limit))
        return replies


def _messages(question: Question) -> list[dict[str, Any]]:
    from PIL import Image

    content: list[dict[str, Any]] = []
    for label, jpeg in question.images:
        content += [
            {"type": "text", "text": label},
            {"type": "image", "image": Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB")},
        ]
    content.append({"type": "text", "text": question.text})
    system = [{"type": "text", "text": question.system}]
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]
