"""Orders to a fleet, whose reports come late: the newest order holds."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dispatch.workers.scaling import SHOWN_S, Scaling
from protocol.codec import decode_to_worker
from protocol.messages import Drain, EndEngine, Kind, StartEngine, Supervision, Watch
from tests.support.dispatch_rig import EPOCH, Rig


class Unit:
    """One engine after the other, as a supervisor keeps it."""

    def __init__(self, name: str) -> None:
        self.name, self.lives, self.parked = name, 1, False

    @property
    def engine(self) -> str:
        return f"{self.name}-{self.lives}"

    def report(self) -> Supervision:
        return Supervision(
            model="m",
            kind=Kind.CHAT,
            watch=Watch.DRAINING if self.parked else Watch.RUNNING,
            pid=7,
            engine=self.engine,
            engine_pid=0 if self.parked else 8,
            parked=self.parked,
        )


class World:
    """A supervisor process far away: what it is told and what it says are under way until they are delivered."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.scaling = Scaling(epoch=EPOCH, transport=self, clock=self.rig.clock, registry=self.rig.registry)
        self.units = [Unit("u0")]
        self.orders: deque[EndEngine | StartEngine] = deque()
        self.reports: deque[tuple[str, Supervision]] = deque()
        self.rig.supervise(self.units[0].report(), b"u0")

    def send_frame(self, identity: bytes, frame: bytes, buffers: object = ()) -> bool:
        for message in decode_to_worker(frame).messages:
            assert not isinstance(message, Drain)
            assert isinstance(message, EndEngine | StartEngine)
            self.orders.append(message)
        return True

    def obey(self) -> None:
        """The next order arrives."""
        match self.orders.popleft():
            case StartEngine():
                unit = next((unit for unit in self.units if unit.parked), None)
                if unit is None:
                    unit = Unit(f"u{len(self.units)}")
                    self.units.append(unit)
                else:
                    unit.parked, unit.lives = False, unit.lives + 1
            case EndEngine(worker=worker):
                unit = next((unit for unit in self.units if unit.engine == worker and not unit.parked), None)
                if unit is None:
                    return
                unit.parked = True
        self.reports.append((unit.name, unit.report()))

    def crash(self, at: int) -> None:
        """An engine dies and is started again at once."""
        unit = self.units[at % len(self.units)]
        if not unit.parked:
            unit.lives += 1
            self.reports.append((unit.name, unit.report()))

    def hear(self) -> None:
        """The next report arrives."""
        name, report = self.reports.popleft()
        self.rig.supervise(report, name.encode())
        self.scaling.reconcile()

    def settle(self) -> None:
        """Everything arrives."""
        while self.orders or self.reports:
            while self.orders:
                self.obey()
            while self.reports:
                self.hear()

    @property
    def running(self) -> int:
        return sum(not unit.parked for unit in self.units)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("scale"), st.integers(0, 4)),
        st.tuples(st.sampled_from(["obey", "hear", "obey", "hear"]), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 3)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(ACTS, st.integers(0, 4))
def test_newest_order_holds_when_the_ones_before_are_still_under_way(acts: list[tuple[str, int]], last: int) -> None:
    """Whatever was asked, obeyed, reported and crashed in whatever order: as many run as were asked for last."""
    world = World()
    for act, number in [*acts, ("scale", last)]:
        match act:
            case "scale":
                world.scaling.scale_model(world.rig.model, number, grace_s=1.0)
                assert world.scaling.count_replicas(world.rig.model) == number
            case "obey" if world.orders:
                world.obey()
            case "hear" if world.reports:
                world.hear()
            case "crash":
                world.crash(number)
    world.settle()
    assert world.running == last


@pytest.mark.parametrize("orders", [(0, 1), (3, 0, 2), (3, 1), (0, 0, 1), (2, 2, 2)])
def test_load_right_after_unload_is_an_order_of_its_own(orders: tuple[int, ...]) -> None:
    """In one breath, before anything is heard."""
    world = World()
    for replicas in orders:
        world.scaling.scale_model(world.rig.model, replicas, grace_s=1.0)
    world.settle()
    assert world.running == orders[-1]


def test_start_that_never_shows_is_asked_for_again_when_it_is_ordered_later() -> None:
    """A lost order is not waited for longer than it takes to show."""
    world = World()
    world.scaling.scale_model(world.rig.model, 2, grace_s=1.0)
    world.orders.clear()
    world.scaling.scale_model(world.rig.model, 2, grace_s=1.0)
    assert not world.orders
    world.rig.clock.now += SHOWN_S
    world.scaling.scale_model(world.rig.model, 2, grace_s=1.0)
    world.settle()
    assert world.running == 2
