"""How far a long call is: a bar from `tqdm.auto`, the caller's own function, or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from aplens._processes import join_processes
from aplens._words import shorten

if TYPE_CHECKING:
    from tqdm import tqdm

#: Called with (units done, units in all).
Progress: TypeAlias = Callable[[int, int], object]

#: Seconds that a call takes before its bar appears.
_DELAY = 2.0


def show_progress(progress: bool | Progress | None, what: str) -> Progress:
    """The function to call with (units done, units in all).

    Args:
        progress: True for a bar, which appears once the call has taken two seconds; False or None
            for nothing; or the function itself. Of several processes the first one shows the bar.
        what: The bar's name, such as "Measuring effects".
    """
    if callable(progress):
        return progress
    if progress not in (True, False, None):
        raise TypeError(
            f"progress must be True, False or a function of (done, total), got {shorten(progress)}"
        )
    return _Bar(what) if progress and join_processes().is_main else _say_nothing


def _say_nothing(done: int, total: int) -> None:
    pass


class _Bar:
    """A bar that ends with its last unit, or with the call that it belongs to."""

    def __init__(self, what: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ipywidgets that are missing: the bar is text then
            from tqdm.auto import tqdm

        self._bar: tqdm[Any] = tqdm(desc=what, delay=_DELAY, dynamic_ncols=True)

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def __del__(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()
