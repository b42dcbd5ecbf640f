"""An expert for gym-pusht: it tries pushes in a second simulator and takes the best one.

The block moves quasi-statically (gym-pusht stops everything between its steps), so a greedy choice among
sampled pushes, ranked by how far the block's corners are from where they belong, brings it to the goal.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gym_pusht.envs import PushTEnv

AGENT_RADIUS = 15.0
CLEARANCE = 8.0  # pixels between agent and block on the way to a push
TABLE = (22.0, 490.0)  # limits of the agent's centre
TRAVEL_SPEED = 22.0  # pixels per step of 0.1 s
MAX_LENGTH = 140.0  # of one push, in pixels
FINALISTS = 8


@dataclass(frozen=True)
class Push:
    """A straight push: the agent's centre goes from `start` along `direction` (unit) for `length` pixels."""

    start: NDArray[np.float64]
    direction: NDArray[np.float64]
    length: float
    speed: float
    cost: float


class Sandbox:
    """A copy of the simulator, set to a state and stepped by commands like gym-pusht's own `step`."""

    def __init__(self) -> None:
        from gym_pusht.envs import PushTEnv

        self.env: PushTEnv = PushTEnv()
        self.env.reset(seed=0)
        self.agent, self.block, self._space = self.env.agent, self.env.block, self.env.space
        goal = self.env.get_goal_pose_body(self.env.goal_pose)
        self._corners = [v for shape in self.block.shapes for v in shape.get_vertices()]
        self._goal = np.array([goal.local_to_world(v) for v in self._corners])

    def set(self, agent: Any, velocity: Any, block: Any, angle: float) -> None:
        """Put the agent at `agent` (x, y) with a velocity and the block at a pose; the block rests."""
        self.block.angle, self.block.position = angle, tuple(block)
        self.block.velocity, self.block.angular_velocity = (0.0, 0.0), 0.0
        self.agent.position, self.agent.velocity = tuple(agent), tuple(velocity)
        self._space.reindex_shapes_for_body(self.agent)
        self._space.reindex_shapes_for_body(self.block)

    def copy(self, env: "PushTEnv") -> None:
        """Take the state of another simulator."""
        self.set(env.agent.position, env.agent.velocity, env.block.position, env.block.angle)

    def step(self, x: float, y: float) -> None:
        """One control step of 0.1 s towards a command: gym-pusht's PD control, ten steps of physics."""
        agent, space, dt, k_p, k_v = self.agent, self._space, self.env.dt, self.env.k_p, self.env.k_v
        for _ in range(10):
            (px, py), (vx, vy) = agent.position, agent.velocity
            agent.velocity = (
                vx + (k_p * (x - px) - k_v * vx) * dt,
                vy + (k_p * (y - py) - k_v * vy) * dt,
            )
            space.step(dt)

    def error(self) -> float:
        """Mean distance of the block's corners from their places in the goal, in pixels."""
        corners = np.array([self.block.local_to_world(v) for v in self._corners])
        return float(np.linalg.norm(corners - self._goal, axis=1).mean())

    def coverage(self) -> float:
        """Share of the goal that the block covers, 0 to 1; the task is done above 0.95."""
        return float(self.env._get_coverage())


class PushTExpert:
    """Plans pushes for one environment; `act` returns the next command."""

    def __init__(self, env: "PushTEnv", candidates: int = 90):
        self._env, self._candidates = env, candidates
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a new episode; pushes are sampled from `seed`."""
        self._sandbox = Sandbox()
        self._queue: list[NDArray[np.float64]] = []
        self._rng = np.random.default_rng(seed)

    def act(self) -> NDArray[np.float32]:
        """Return the next command, float32 (2,) pixels in 0..512."""
        if not self._queue:
            self._queue = self._plan()
        return self._queue.pop(0).astype(np.float32)

    def _plan(self) -> list[NDArray[np.float64]]:
        """The commands of the way to the best push and of the push."""
        sandbox = self._sandbox
        sandbox.copy(self._env)
        before = sandbox.error()
        pushes = sorted(self._sample(before), key=lambda push: push.cost)
        best: list[NDArray[np.float64]] = []
        lowest = np.inf
        for push, other_way in [(push, way) for push in pushes[:FINALISTS] for way in (False, True)]:
            commands = self._commands(push, other_way)
            sandbox.copy(self._env)
            for x, y in commands:
                sandbox.step(x, y)
            cost = sandbox.error() + 0.03 * len(commands)
            if sandbox.coverage() > sandbox.env.success_threshold:
                cost -= 100
            if cost < lowest:
                best, lowest = commands, cost
        return best or [np.array(self._env.agent.position)]

    def _sample(self, error: float) -> list[Push]:
        """Try pushes from points around the block in the sandbox, without the way to them."""
        outline = self._outline(AGENT_RADIUS + 1)
        speed = 11.0 if error > 40 else 6.0 if error > 12 else 3.0
        steps = int(min(MAX_LENGTH, 3 * error + 15) / speed)
        state = (self._env.block.position, self._env.block.angle)
        pushes = []
        for along in self._rng.random(self._candidates):
            start, normal = _point_on(outline, float(along))
            if start.min() < TABLE[0] or start.max() > TABLE[1]:
                continue
            turn = self._rng.normal(0, 0.45)
            turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ -normal
            self._sandbox.set(start, (0, 0), *state)
            best, length = np.inf, 0.0
            for step in range(1, steps + 1):
                x, y = np.clip(start + turned * speed * step, *TABLE)
                self._sandbox.step(x, y)
                cost = self._sandbox.error()
                if cost < best:
                    moved = np.array(self._sandbox.agent.position) - start
                    best, length = cost, float(moved @ turned)
                elif cost > best + 25:
                    break
            pushes.append(Push(start, turned, length, speed, best))
        return pushes

    def _commands(self, push: Push, other_way: bool) -> list[NDArray[np.float64]]:
        agent = np.array(self._env.agent.position)
        way = _travel(agent, push.start, self._outline(AGENT_RADIUS + CLEARANCE), other_way)
        commands = [*_walk([agent, *way], TRAVEL_SPEED), push.start, push.start]
        end = np.clip(push.start + push.direction * push.length, *TABLE)
        return [*commands, *_walk([push.start, end], push.speed), end, end]

    def _outline(self, margin: float):
        """The block grown by a margin, as a shapely polygon."""
        from gym_pusht.envs.pusht import pymunk_to_shapely
        from shapely.ops import unary_union

        block = self._env.block
        return unary_union(pymunk_to_shapely(block, block.shapes).geoms).buffer(margin)


def _point_on(outline: Any, along: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A point on a polygon's border, `along` in 0..1, and the outward normal there."""
    ring, length = outline.exterior, outline.exterior.length
    point, after = (ring.interpolate((along * length + ahead) % length) for ahead in (0.0, 0.5))
    tangent = np.array([after.x - point.x, after.y - point.y])
    normal = np.array([tangent[1], -tangent[0]]) / max(np.linalg.norm(tangent), 1e-9)
    return np.array([point.x, point.y]), normal * (1 if ring.is_ccw else -1)


def _travel(begin: NDArray, end: NDArray, outline: Any, other_way: bool) -> list[NDArray[np.float64]]:
    """Waypoints from one point to another around a polygon, the last one `end`."""
    from shapely.geometry import LineString, Point
    from shapely.ops import substring

    if LineString([begin, end]).intersection(outline).length < 1:
        return [end]
    ring = outline.convex_hull.exterior
    first, last = (ring.project(Point(point)) for point in (begin, end))
    low, high = sorted((first, last))
    inner = list(substring(ring, low, high).coords)
    outer = [*substring(ring, high, ring.length).coords, *substring(ring, 0, low).coords]
    short = inner if (high - low <= ring.length / 2) != other_way else outer
    if (short is inner) == (first > last):
        short = short[::-1]
    return [*(np.clip(np.array(point), *TABLE) for point in short), end]


def _walk(points: list[NDArray[np.float64]], speed: float) -> list[NDArray[np.float64]]:
    """Points along a polyline, `speed` pixels apart, its end included."""
    from shapely.geometry import LineString

    line = LineString(points)
    count = max(int(np.ceil(line.length / speed)), 1)
    return [np.array(line.interpolate(i / count, normalized=True).coords[0]) for i in range(1, count + 1)]
