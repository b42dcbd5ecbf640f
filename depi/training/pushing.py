"""Publishing checkpoints while training goes on: the newest one, in the background, again after a failure."""

import logging
import threading
from pathlib import Path

from depi.training.config import TrainConfig
from depi.training.publishing import publish
from depi.training.upload_config import UploadConfig

logger = logging.getLogger(__name__)


class Pusher:
    """Uploads checkpoints in a thread, one at a time; of those that arrive meanwhile, only the newest.

    Errors do not stop the run: they are logged, and the next checkpoint is tried.
    """

    def __init__(self, config: TrainConfig) -> None:
        assert config.policy is not None
        assert config.policy.repo_id is not None
        self.repo_id, self.with_state = config.policy.repo_id, config.save_checkpoint_to_hub
        self.private = bool(config.policy.private)
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._uploading: Path | None = None
        self._failed: Path | None = None

    @property
    def busy(self) -> set[Path]:
        """The checkpoints that are being read or will be, which must not be removed."""
        with self._changed:
            return {path.parent for path in (self._uploading, self._waiting) if path}

    def push(self, pretrained: Path) -> None:
        """Upload a checkpoint, given its `pretrained_model` folder, once an earlier upload has ended."""
        with self._changed:
            idle = self._uploading is None
            self._waiting = pretrained
            if idle:
                self._uploading = pretrained
                threading.Thread(target=self._work, name="upload", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is left to upload; log the command to type if the last one failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._uploading is None)
        if self._failed:
            logger.error(
                "%s was not published: try again with `depi upload %s %s%s`",
                self._failed.parent,
                self._failed.parent,
                self.repo_id,
                " --all" if self.with_state else "",
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._uploading, self._waiting = self._waiting, None
                if self._uploading is None:
                    self._changed.notify_all()
                    return
                pretrained = self._uploading
            self._failed = None
            try:
                publish(UploadConfig(pretrained, self.repo_id, private=self.private, all=self.with_state))
                logger.info("published %s as %s", pretrained.parent, self.repo_id)
            except Exception as error:  # no network error may end the training
                self._failed = pretrained
                logger.warning(
                    "%s was not published: %s; the next checkpoint will be tried", pretrained.parent, error
                )
