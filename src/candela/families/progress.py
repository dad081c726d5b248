"""Steps of a pipeline that runs whole, as its own progress bar counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

OnProgress = Callable[[int, int], None]  # (steps done, of how many); may raise to stop the run


class Bars:
    """Stands in for the progress bars of one run: most pipelines draw one, a prior with its decoder two."""

    def __init__(self, on_progress: OnProgress):
        self.done = self.total = 0
        self.raised: BaseException | None = None
        self._on_progress = on_progress

    def bar(self, iterable: Any = None, total: int | None = None) -> Any:
        items = None if iterable is None else list(iterable)
        self.total = self.done + (len(items) if items is not None else total or 0)
        self._tell()
        return _Bar(self, items)

    def step(self, number: int = 1) -> None:
        self.done += number
        self.total = max(self.total, self.done)
        self._tell()

    def _tell(self) -> None:
        try:
            self._on_progress(self.done, self.total)
        except BaseException as error:
            self.raised = error
            raise


class _Bar:
    """As much of tqdm as pipelines use."""

    def __init__(self, bars: Bars, items: list[Any] | None):
        self.bars, self.items = bars, items

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or ():
            yield item
            self.bars.step()

    def __len__(self) -> int:
        return len(self.items or ())

    def update(self, number: int = 1) -> None:
        self.bars.step(number)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None  # set_description, set_postfix, refresh, close, ...


def with_parts_inside(pipeline: Any) -> list[Any]:
    """A combined pipeline holds others, each with its own bar."""
    return [pipeline, *(part for part in vars(pipeline).values() if hasattr(part, "progress_bar"))]
