"""A look at the model's speed: it reads and answers something beside the chat."""

from app.chat.state import Problem
from app.events import Completion
from app.job import Job
from app.service.contract import ModelService


class SpeedLook:
    """Follows one look at a time. result: what the last one found; problem: why it failed."""

    def __init__(self, service: ModelService) -> None:
        self.result: Completion | None = None
        self.problem: Problem | None = None
        self._service = service
        self._job: Job[Completion] | None = None

    @property
    def running(self) -> bool:
        """Whether a look is being taken."""
        return self._job is not None

    def begin(self) -> None:
        """Take a look."""
        self.result = self.problem = None
        self._job = self._service.measure()

    def tick(self) -> bool:
        """Take what has come; returns whether the look has ended."""
        if self._job is None:
            return False
        if items := self._job.poll():
            self.result = items[-1]
        if not self._job.ended:
            return False
        if self._job.error is not None:
            self.problem = Problem.of("the speed was not measured", self._job.error)
        self._job = None
        return True
