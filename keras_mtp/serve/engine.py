"""The thread that computes: loads the model, tries it, then gives all answers, pass by pass.

    submit -> waiting (bounded) -> batch (bounded): prompts are read, passes made, whoever has ended makes room

Other questions, `call`ed, are asked by a second thread, one after another, as many waiting at most: about one pass each, but for
TensorFlow Serving's `generate`, which is a whole loop that nothing ends before its time.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.export.served_model import About, ServedModel
from keras_mtp.limits import Limits, Refused
from keras_mtp.serve.answer import Answer, News
from keras_mtp.serve.batch import Batch
from keras_mtp.serve.metrics import Metrics

_log = logging.getLogger(__name__)


class Engine:
    """Gives answers by an exported model.

    Args:
        folder: of the model. about: read from there. tokenizer: likewise.
        limits: how many answers at a time. metrics: where to count.
        speculate: whether the model's heads draft. The tokens are the same without, in more passes.
    """

    def __init__(
        self,
        folder: Path,
        about: About,
        tokenizer: Tokenizer,
        limits: Limits,
        metrics: Metrics,
        *,
        speculate: bool = True,
    ):
        self.folder, self.about, self.tokenizer, self.limits, self.metrics = (
            folder,
            about,
            tokenizer,
            limits,
            metrics,
        )
        self.speculate = speculate
        self.model: ServedModel | None = None
        self.not_ready: str | None = "the model is being loaded"
        self.seconds_per_answer = 1.0  # of late
        self._waiting: deque[tuple[Answer, float]] = deque()
        self._wake = threading.Condition()
        self._ending = False
        self._calls, self._calling = ThreadPoolExecutor(1, "call"), 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def heads(self) -> int:
        """K, how many tokens a pass yields at most."""
        return 1 if self.model is None else self.model.said_per_pass

    def start(self) -> None:
        """Begins to load; `not_ready` is None once the model has said what it must."""
        self._thread.start()

    def stop(self) -> None:
        """Ends when the pass that is being made is done. Waits for it."""
        with self._wake:
            self._ending, self.not_ready = True, "the server is ending"
            self._wake.notify()
        self._calls.shutdown(wait=True, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, answers: Sequence[Answer]) -> None:
        """Has answers given, all of them or none.

        Raises:
            Refused: too many wait already, or the model is not ready.
        """
        with self._wake:
            self._require_ready()
            self._forget_gone()
            if len(self._waiting) + len(answers) > self.limits.max_queue:
                self._refuse()
            self._waiting.extend((answer, time.monotonic()) for answer in answers)
            self.metrics.waiting.set(len(self._waiting))
            self._wake.notify()

    def call(self, question: Callable[[ServedModel], Any]) -> Future:
        """Has a question about one forward pass answered; raises as `submit`."""
        with self._wake:
            model = self._require_ready()
            if self._calling >= self.limits.max_queue:
                self._refuse()
            self._calling += 1
            asked = self._calls.submit(question, model)
        asked.add_done_callback(self._called)  # also of one that was cancelled before its turn came
        return asked

    def _called(self, asked: Future) -> None:
        with self._wake:
            self._calling -= 1

    def _forget_gone(self) -> None:
        """Makes room in the queue, where nobody waits for some answers any more."""
        wanted = [(answer, came) for answer, came in self._waiting if not answer.cancelled]
        self.metrics.left.inc(len(self._waiting) - len(wanted))
        self._waiting = deque(wanted)

    def _require_ready(self) -> ServedModel:
        if self.not_ready or self.model is None:
            raise Refused(f"The server is not ready: {self.not_ready}.", 503, code="not_ready", retry_after=1)
        return self.model

    def _refuse(self) -> None:
        self.metrics.refused.inc()
        turns = (len(self._waiting) + self._calling) / self.limits.max_batch
        wait = max(1, round(turns * self.seconds_per_answer))
        raise Refused(
            f"Too many requests wait already, {self.limits.max_queue}. Try again in {wait} s.",
            429,
            code="queue_full",
            retry_after=wait,
        )

    def _run(self) -> None:
        try:
            self.model = ServedModel(self.folder)
            batch = self._batch(self.model)
            self.not_ready = (self._ending and self.not_ready) or self._tried(self.model)
        except Exception as error:
            _log.exception("The model cannot be loaded.")
            self.not_ready = f"the model cannot be loaded ({type(error).__name__})"
            return
        if self.not_ready:
            _log.error("Not ready: %s.", self.not_ready)
        while not self._ending:
            try:
                self._turn(batch)
            except Exception:  # TensorFlow ran out of memory, say; later answers may be shorter
                _log.exception("A pass failed.")
                for answer in batch.answers:
                    answer.tell(News(error="The model could not compute the answer."))
                batch = self._batch(self.model)

    def _batch(self, model: ServedModel) -> Batch:
        return Batch(model, self.tokenizer.eos_ids, speculate=self.speculate)

    def _tried(self, model: ServedModel) -> str | None:
        """None if the model says what it said when it was exported."""
        about = self.about
        said = model.answer(
            [about.golden_prompt],
            longest=max(len(about.golden_answer), 1) + 1,
            stop_ids=self.tokenizer.eos_ids,
            speculate=model.said_per_pass > 1,
        )[0]
        if said[: len(about.golden_answer)] == about.golden_answer:
            return None
        return f"asked what the export was asked, the model says {said} and not {about.golden_answer}"

    def _turn(self, batch: Batch) -> None:
        """Lets answers come and go, then makes a pass; or waits for an answer to be wanted."""
        with self._wake:
            while not (self._waiting or len(batch) or self._ending):
                self._wake.wait()
            self._forget_gone()
            new: list[tuple[Answer, float]] = []
            while self._waiting and len(batch) + len(new) < self.limits.max_batch:
                new.append(self._waiting.popleft())
            self.metrics.waiting.set(len(self._waiting))
        if new:
            self._begin(batch, new)
        self._drop(batch)
        if len(batch):
            yielded, speculated = batch.step()
            self.metrics.passes.labels("yes" if speculated else "no").inc()
            self.metrics.new_tokens.inc(sum(yielded))
            for tokens in yielded:
                self.metrics.tokens_per_pass.observe(tokens)
            self._drop(batch)

    def _begin(self, batch: Batch, new: Sequence[tuple[Answer, float]]) -> None:
        answers = [answer for answer, _ in new]
        try:
            batch.add(answers)
        except Exception:  # those that were going on still are
            _log.exception("Prompts could not be read.")
            for answer in answers:
                answer.tell(News(error="The model could not read the prompt."))
            return
        now = time.monotonic()
        for answer, came in new:
            answer.came = came
            self.metrics.first_token_seconds.observe(now - came)
            self.metrics.prompt_tokens.inc(len(answer.wish.prompt))
            self.metrics.new_tokens.inc(answer.said)

    def _drop(self, batch: Batch) -> None:
        before = batch.answers
        batch.drop_ended()
        for answer in before:
            if answer.finish:
                self.seconds_per_answer += 0.1 * (time.monotonic() - answer.came - self.seconds_per_answer)
            elif answer.cancelled:
                self.metrics.left.inc()
        self.metrics.running.set(len(batch))
