from __future__ import annotations

import pytest

from opcel_compiler.schedule.choice.sharing import share_out


def loads(rows: int, images: int, panels: int, cut: tuple[int, int], threads: int) -> list[int]:
    """Rows times panels of each thread, its part of the tasks in their order."""
    size, per_task = cut
    slices = [min(size, rows - at) for at in range(0, rows, size)]
    groups = [min(per_task, panels - at) for at in range(0, panels, per_task)]
    tasks = [s * g for _ in range(images) for g in groups for s in slices]
    return [sum(tasks[len(tasks) * t // threads : len(tasks) * (t + 1) // threads]) for t in range(threads)]


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("panels", [2, 4, 10])
@pytest.mark.parametrize("rows", [14, 28, 56, 112, 150])
def test_two_threads_have_the_same_work(rows: int, panels: int, by_rows: bool) -> None:
    _, cut = share_out(rows, 1, 1, panels, rows, by_rows, 1)
    one, other = loads(rows, 1, panels, cut, 2)
    assert abs(one - other) <= 0.04 * (one + other)


def test_tasks_of_equal_size() -> None:
    _, cut = share_out(49, 0, 1, 5, 1, False, 1)
    assert 49 % cut.rows == 0


def test_rows_stay_with_their_thread_when_asked() -> None:
    _, cut = share_out(56, 1, 1, 6, 56, True, 1)
    assert cut.panels == 6
    _, cut = share_out(56, 1, 1, 6, 56, False, 1)
    assert cut.panels == 1


def test_slices_fit_the_cache() -> None:
    _, cut = share_out(112, 1, 1, 4, 112, True, 28)
    assert -(-112 // cut.rows) >= 28
