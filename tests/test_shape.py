"""Everything runs one way: no circle of imports, and none against the order of the rooms."""

from __future__ import annotations

import shape


def test_no_modules_import_each_other():
    assert shape.circles() == []


def test_every_room_uses_only_rooms_before_it():
    assert shape.arrows_up() == []
    rooms = {shape.room(name) for name in shape.modules() if "." in name}
    assert rooms - {"__main__"} <= set(shape.ROOMS)
