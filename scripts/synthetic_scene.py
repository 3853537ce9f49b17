"""A person moving in a room in front of a camera: motion, skeleton, look, room, drawing of frames and poses.

Random sequences of key poses (`Choreography`) drive a 3D skeleton (`skeleton`) in front of a perspective camera.
Frames (`draw_frame`) and pose images (`draw_pose`) are drawn from the same skeleton. World axes in metres: X to the
right of the picture, Y up from the floor, Z away from the camera; yaw 0 faces the camera. The same seed gives the
same scene: each purpose has its own random stream (`stream`). Nothing here reads or writes a file.
"""
import colorsys
import functools
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

FPS = 30
FOCAL, HORIZON = 1.1, 0.43  # focal length and distance of the horizon from the top edge, in picture heights
EYE, WALL = 1.12, 4.2  # height of the camera and distance of the back wall, metres
SUPERSAMPLE = 4
LOOK, ROOM, CUTS, GRAIN, TRAIN, VAL, TEST = range(7)  # purposes of random streams


def stream(seed, *purpose):
    """The random generator of one purpose, so that a change in one does not affect the others."""
    return np.random.default_rng([seed, *purpose])


def half_width(z, aspect):
    """Half the width of the camera's view at distance z, metres."""
    return aspect * z / (2 * FOCAL)


def project(point, size):
    """Column, row and scale (pixels per metre) of points (..., 3) in a picture of size (height, width)."""
    point = np.asarray(point, np.float64)
    scale = FOCAL * size[0] / np.maximum(point[..., 2], 0.3)
    return size[1] / 2 + point[..., 0] * scale, HORIZON * size[0] - (point[..., 1] - EYE) * scale, scale


ARM = {"abd": 0.12, "flex": 0.0, "fore_abd": 0.08, "fore_flex": 0.2, "wave": 0.0}  # at rest, radians


def arms(sides="lr", **angles):
    """A key pose of the arms in radians: sideways and forward angle of upper arm and forearm, amplitude of waving."""
    return {f"{side}_{name}": angle for side in sides for name, angle in (ARM | angles).items()}


REST = {"crouch": 0.0, "lean": 0.02, **arms()}
COLUMNS = ("x", "z", "yaw", *REST)
GESTURES = {  # (seconds until the key pose is reached, key pose), ...
    "raise": ((0.8, arms(abd=2.5, fore_abd=2.75, fore_flex=0.0)), (0.4, {}), (0.8, REST)),
    "wave_l": ((0.6, arms("l", abd=1.3, flex=0.2, fore_abd=2.7, wave=0.55)), (1.2, {}), (0.6, REST)),
    "wave_r": ((0.6, arms("r", abd=1.3, flex=0.2, fore_abd=2.7, wave=0.55)), (1.2, {}), (0.6, REST)),
    "reach": ((0.7, arms(flex=1.45, fore_flex=1.6)), (0.6, arms(abd=1.5, fore_abd=1.5)), (0.7, REST)),
    "squat": ((0.9, arms(flex=1.2, fore_flex=1.5) | {"crouch": 1.0, "lean": 0.55}), (0.3, {}), (0.9, REST)),
}


class Choreography:
    """Key poses of one shot, made of actions that each start where the previous one ended.

    The person starts in the middle and then stays at the sides, so that no shot remains similar to its first frame.
    """

    def __init__(self, rng, aspect):
        self.rng, self.aspect = rng, aspect
        x, z, yaw = rng.uniform([-0.2, 2.4, -0.3], [0.2, 2.7, 0.3])
        self.pose = {"x": x, "z": z, "yaw": yaw, **REST}
        self.times, self.poses = [0.0], [tuple(self.pose.values())]

    def to(self, seconds, **targets):
        self.pose.update(targets)
        self.times.append(self.times[-1] + seconds)
        self.poses.append(tuple(self.pose.values()))

    def face(self, yaw):
        turn = (yaw - self.pose["yaw"] + np.pi) % (2 * np.pi) - np.pi  # the shorter way
        self.to(0.2 + 0.25 * abs(turn), yaw=self.pose["yaw"] + turn)

    def go(self, x, z):
        dx, dz = x - self.pose["x"], z - self.pose["z"]
        self.face(np.arctan2(dx, -dz))
        self.to(0.3 + np.hypot(dx, dz) / self.rng.uniform(1.15, 1.45), x=x, z=z)

    def spot(self, z, side):
        """X of a place on one side of the picture, away from the middle."""
        return side * self.rng.uniform(0.4, 0.8) * (half_width(z, self.aspect) - 0.2)

    def gesture(self, name):
        tempo, x = self.rng.uniform(0.65, 1.0), self.pose["x"]
        x += np.clip(self.spot(self.pose["z"], np.sign(x)) - x, -0.5, 0.5)  # a small side step at the same time
        for seconds, targets in GESTURES[name]:
            self.to(tempo * seconds, **targets, x=x)

    def walk(self):
        z, side = self.rng.uniform(2.3, 3.0), -1 if self.pose["x"] > 0 else 1
        self.go(self.spot(z, side), z)
        self.face(self.rng.uniform(-0.5, 0.5))

    def turn(self):
        angle = self.rng.choice([-1, 1]) * self.rng.choice([np.pi / 2, np.pi, 2 * np.pi])
        self.to(0.3 + 0.27 * abs(angle), yaw=self.pose["yaw"] + angle)
        self.to(self.rng.uniform(0.1, 0.4))
        self.face(self.rng.uniform(-0.4, 0.4))

    def approach(self):
        x, z = self.pose["x"], self.pose["z"]
        self.go(0.4 * x, self.rng.uniform(1.5, 1.65))
        self.face(0.0)
        self.gesture(self.rng.choice(["wave_l", "wave_r", "raise"]))
        self.to(1.4, x=x, z=z)  # back, still facing the camera

    def leave(self):
        side, z = self.rng.choice([-1, 1]), self.rng.uniform(2.3, 2.8)
        self.go(side * (half_width(z, self.aspect) + 0.7), z)
        self.to(self.rng.uniform(0.2, 0.6))
        self.go(self.spot(z, side), z)
        self.face(0.0)

    def perform(self, frames):
        """Pose parameters of every frame, (frames, len(COLUMNS)).

        Actions are drawn without replacement until all have been used, so that every long shot shows all of them.
        """
        bag = [self.walk]
        while self.times[-1] * FPS < frames:
            bag.pop(0)()
            self.to(self.rng.uniform(0.05, 0.2))
            if not bag:
                acts = [functools.partial(self.gesture, name) for name in GESTURES] + [self.turn, self.walk]
                bag = [acts[i] for i in self.rng.permutation(len(acts))]
                bag[1:1], bag[5:5] = [self.approach], [self.leave]
        now, times, poses = np.arange(frames) / FPS, np.array(self.times), np.array(self.poses)
        i = np.searchsorted(times, now, side="right") - 1
        u = ((now - times[i]) / (times[i + 1] - times[i]))[:, None]
        ease = u**3 * (10 - 15 * u + 6 * u**2)  # minimum jerk: zero velocity at every key pose
        return poses[i] + (poses[i + 1] - poses[i]) * ease


def body_axes(yaw, lean):
    """World directions of left, up and ahead of a body part, (frames, 3, 3)."""
    sin, cos, zero, lean = np.sin(yaw), np.cos(yaw), 0 * yaw, np.broadcast_to(lean, yaw.shape)[:, None]
    left, up, ahead = np.stack([cos, zero, sin], 1), np.array([0.0, 1.0, 0.0]), np.stack([sin, zero, -cos], 1)
    upright, level = np.cos(lean) * up + np.sin(lean) * ahead, np.cos(lean) * ahead - np.sin(lean) * up
    return np.stack([left, upright, level], 1)


def offset(axes, left, up, ahead):
    """World displacement of body coordinates in metres, (frames, 3)."""
    return np.einsum("at,tac->tc", np.stack(np.broadcast_arrays(left, up, ahead, axes[:, 0, 0])[:3]), axes)


def hanging(side, abd, flex):
    """Direction, in body coordinates, of a limb that points down at rest; side is 1 for left and -1 for right."""
    return side * np.sin(abd) * np.cos(flex), -np.cos(abd) * np.cos(flex), np.sin(flex)


def skeleton(track, height, rng):
    """Joints and outline points of the body in every frame.

    Parameters
    ----------
    track : (frames, len(COLUMNS)) array
        From `Choreography.perform`.
    height : float
        Height of the person, metres.
    rng : numpy.random.Generator
        Draws the phases of the sway and of the steps.

    Returns
    -------
    dict of str to (frames, 3) array
        World coordinates, metres.
    """
    p, k = SimpleNamespace(**dict(zip(COLUMNS, track.T, strict=True))), height / 1.72
    beats = np.arange(len(track))[:, None] / FPS * [0.33, 0.21, 0.15, 1.7] + rng.random(4)
    sway, slow, slower, shake = np.sin(2 * np.pi * beats).T
    floor = body_axes(p.yaw, 0.0)
    vx, vz, spin = (np.gradient(value) * FPS for value in (p.x, p.z, p.yaw))
    ahead = vx * floor[:, 2, 0] + vz * floor[:, 2, 2]
    aside = np.abs(vx * floor[:, 0, 0] + vz * floor[:, 0, 2]) + 0.4 * np.abs(spin)  # turning takes steps, too
    # The phase follows the distance covered, so that feet do not slide.
    phase = 2 * np.pi * (np.cumsum(ahead / 1.35 + aside / 0.9) / FPS + rng.random())
    stride, step = np.minimum(np.abs(ahead), 1.1) / 1.1, np.minimum(aside, 1.0)
    chest = body_axes(p.yaw + 0.08 * slow + 0.12 * stride * np.sin(phase), p.lean + 0.03 * sway)
    skull = body_axes(p.yaw + 0.25 * slower, 0.3 * p.lean + 0.05 * slow)
    body = {"pelvis": np.stack([p.x + 0.03 * slower, 0 * p.x, p.z], 1)}

    def fix(name, base, axes, *place):
        body[name] = body[base] + k * offset(axes, *place)

    fix("neck", "pelvis", chest, 0.03 * sway, 0.53, 0)
    fix("head", "neck", skull, 0, 0.17, 0)
    for name, *place in (("crown", 0.02, -0.02), ("nape", -0.17, -0.06), ("face", -0.02, 0.035),
                         ("chin", -0.06, 0.035), ("nose", -0.02, 0.1)):
        fix(name, "head", skull, 0, *place)
    for side, s, angle in ((1, "l", phase), (-1, "r", phase + np.pi)):
        abd, flex, fore_abd, fore_flex, wave = (getattr(p, f"{s}_{name}") for name in ARM)
        swing, lift = np.sin(angle), np.maximum(np.cos(angle), 0) ** 2
        upper = hanging(side, abd, flex - 0.4 * stride * swing + 0.03 * slow)
        fore = hanging(side, fore_abd + wave * shake, fore_flex + stride * (0.25 - 0.45 * swing))
        thigh = 0.42 * stride * swing + 0.4 * step * lift + 1.75 * p.crouch
        shin = thigh - 0.06 - 0.9 * stride * lift - 0.8 * step * lift - 2.2 * p.crouch
        spread = 0.05 + 0.25 * p.crouch + 0.12 * step * lift
        sole = np.pi / 2 - 0.2 + 0.6 * np.minimum(shin + 0.45 * p.crouch, 0)
        for name, base, axes, *place in (
                ("ear", "head", skull, 0.1, 0, 0), ("eye", "face", skull, 0.042, 0.02, 0.085),
                ("chest", "neck", chest, 0.09, -0.13, 0), ("badge", "neck", chest, 0.05, -0.17, 0.09),
                ("waist", "pelvis", chest, 0.055, 0.1, 0), ("shoulder", "neck", chest, 0.185, -0.05, 0),
                ("hip", "pelvis", floor, 0.095, 0, 0)):
            fix(f"{s}_{name}", base, axes, side * place[0], *place[1:])
        for name, base, axes, length, place in (
                ("elbow", "shoulder", chest, 0.29, upper), ("wrist", "elbow", chest, 0.25, fore),
                ("hand", "wrist", chest, 0.07, fore),
                ("knee", "hip", floor, 0.43, hanging(side, spread, thigh)),
                ("ankle", "knee", floor, 0.42, hanging(side, 0.03, shin)),
                ("toe", "ankle", floor, 0.17, hanging(side, 0.25, sole))):
            fix(f"{s}_{name}", f"{s}_{base}", axes, *(length * part for part in place))
    feet = (body["l_ankle"] + body["r_ankle"]) / 2 - body["pelvis"]
    shift = -p.crouch[:, None] * feet  # feet stay in place in a squat
    shift[:, 1] = 0.08 * k - np.minimum(body["l_ankle"][:, 1], body["r_ankle"][:, 1])
    return {name: place + shift for name, place in body.items()}


def linear(rgb):
    """sRGB in [0, 1] to linear light."""
    return np.asarray(rgb, np.float32) ** np.float32(2.2)


def make_look(seed, person):
    """Height of a person in metres, and colours of skin, hair and clothes in linear RGB."""
    rng = stream(seed, LOOK, person)

    def colour(saturation, brightness):
        rgb = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), 1.0))
        return linear(np.minimum(rgb * rng.uniform(*brightness) / (rgb @ [0.3, 0.59, 0.11]), 1))

    look = SimpleNamespace(height=rng.uniform(1.66, 1.78), shirt=colour((0.5, 0.8), (0.45, 0.54)))
    look.trousers, look.badge = colour((0.2, 0.5), (0.31, 0.37)), colour((0, 0.3), (0.7, 0.9))
    look.shoes = colour((0, 0.5), (0.15, 0.8))
    look.skin = linear(np.array([0.93, 0.74, 0.62]) * rng.uniform(0.65, 1.0))
    look.hair = linear(np.array([0.30, 0.20, 0.13]) * rng.uniform(0.35, 1.3))
    look.sleeve = look.shirt if rng.random() < 0.5 else look.skin
    look.leg = look.trousers if rng.random() < 0.7 else look.skin
    look.locks = look.hair if rng.random() < 0.4 else None
    return look


def draw_room(seed, person, size):
    """Paint the empty room.

    Returns
    -------
    SimpleNamespace
        picture (H, W, 3): linear light. glow (H, W): brightness of the lamp's light, 0..1. lamp (3,): direction
        to the lamp. first: top row of the floor. x (H - first, W), z (H - first, 1): world coordinates of the
        floor's pixels, metres.
    """
    rng, (height, width) = stream(seed, ROOM, person), size
    image = Image.new("RGB", (width, height))
    end = 0.88 * half_width(WALL, width / height)  # side walls

    def face(corners, hue, saturation, value):
        columns, rows, _ = project(corners, size)
        colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, min(value, 1)))
        ImageDraw.Draw(image).polygon(list(zip(columns.tolist(), rows.tolist(), strict=True)), fill=colour)

    def panel(x, y, half, rise, *colour, z=WALL):
        face([(x - half, y, z), (x + half, y, z), (x + half, y + rise, z), (x - half, y + rise, z)], *colour)

    def plate(x0, x1, y, z0, z1, *colour):
        face([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)], *colour)

    hue = rng.uniform(0.05, 0.17) if rng.random() < 0.6 else rng.uniform(0.45, 0.65)
    wood, wall, value = rng.uniform([0.05, 0.06, 0.78], [0.1, 0.2, 0.85])
    panel(0, -1, 9 * end, 9, hue, wall, value)
    for x in np.arange(-end, end, 0.22):
        plate(x, x + 0.22, 0, 0.5, WALL, wood, 0.3, rng.uniform(0.63, 0.67))
    for x, shade in ((-end, 0.92), (end, 0.8)):
        face([(x, 0, WALL), (x, 9, WALL), (x, 9, 0.5), (x, 0, 0.5)], hue, wall, value * shade)
    panel(0, 0, end, 0.12, hue, wall / 2, value + 0.12)
    pool, door = end * (rng.permutation([-0.62, 0.66]) + rng.uniform(-0.05, 0.05, 2))
    panel(door, 0, 0.5, 2.15, hue, wall, value * 0.94)  # a studio: the door has the wall's colour

    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    column, row, _ = project((pool, 1.7, WALL), size)
    glow = np.exp(-(((columns - column) / (1.1 * height)) ** 2 + ((rows - row) / (0.9 * height)) ** 2))
    patches = Image.fromarray(rng.uniform(0.93, 1.07, (4, 7)).astype(np.float32))
    light = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC)) * (0.74 + 0.38 * glow)
    lit = linear(np.asarray(image) / 255) * light[..., None].astype(np.float32)
    lamp = np.array([np.sign(pool) * 0.54, 0.59, -0.6], np.float32)
    first = int(project((0, 0, WALL), size)[1]) + 1
    z = FOCAL * height * EYE / (rows[first:] - HORIZON * height)
    x = (columns - width / 2) * z / (FOCAL * height)
    z, x = z.astype(np.float32), x.astype(np.float32)
    return SimpleNamespace(picture=lit, glow=glow.astype(np.float32), lamp=lamp, first=first, x=x, z=z)


@functools.lru_cache(maxsize=8)
def scenery(seed, person, size):
    """Look and room of a person, for `draw_frame` with frames of size (height, width)."""
    return make_look(seed, person), draw_room(seed, person, (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE))


PARTS = (  # from, to, radius at both ends in metres, look at both ends; * means l and r
    ("pelvis", "pelvis", 0.13, 0.13, "trousers", "trousers"),
    ("*_hip", "pelvis", 0.115, 0.115, "trousers", "trousers"),
    ("*_hip", "*_knee", 0.105, 0.07, "trousers", "leg"), ("*_knee", "*_ankle", 0.068, 0.05, "leg", "leg"),
    ("*_ankle", "*_toe", 0.058, 0.045, "shoes", "shoes"),
    ("*_chest", "*_waist", 0.13, 0.125, "shirt", "shirt"),
    ("l_shoulder", "r_shoulder", 0.072, 0.072, "shirt", "shirt"),
    ("l_badge", "r_badge", 0.06, 0.06, "badge", "badge"),
    ("*_shoulder", "*_elbow", 0.07, 0.055, "shirt", "sleeve"),
    ("*_elbow", "*_wrist", 0.052, 0.04, "sleeve", "sleeve"),
    ("*_wrist", "*_hand", 0.045, 0.042, "skin", "skin"), ("neck", "head", 0.058, 0.055, "skin", "skin"),
    ("crown", "crown", 0.125, 0.125, "hair", "hair"), ("crown", "nape", 0.115, 0.1, "locks", "locks"),
    ("face", "chin", 0.1, 0.075, "skin", "skin"), ("*_eye", "*_eye", 0.02, 0.02, "hair", "hair"),
)


def draw_body(body, look, size):
    """Draw the body as rods with round ends, with a depth buffer.

    Returns
    -------
    depth (H, W), infinite outside the body; surface normal (H, W, 3); colour (H, W, 3) in linear light
    """
    depth, girth = np.full(size, np.inf, np.float32), look.height / 1.72
    normal, colour = np.zeros((2, *size, 3), np.float32)
    # Python floats keep the arrays below in single precision, which is twice as fast.
    seen = {name: [float(v) for v in (*project(place, size), place[2])] for name, place in body.items()}
    for part, side in ((rod, side) for rod in PARTS for side in ("lr" if "*" in rod[0] else "-")):
        (xa, ya, scale_a, za), (xb, yb, scale_b, zb) = (seen[name.replace("*", side)] for name in part[:2])
        ra, rb = girth * part[2] * scale_a, girth * part[3] * scale_b
        near, far = (getattr(look, name) for name in part[4:])
        x0, x1 = max(int(min(xa - ra, xb - rb)), 0), min(int(max(xa + ra, xb + rb)) + 1, size[1])
        y0, y1 = max(int(min(ya - ra, yb - rb)), 0), min(int(max(ya + ra, yb + rb)) + 1, size[0])
        if near is None or x0 >= x1 or y0 >= y1:
            continue
        box = np.s_[y0:y1, x0:x1]
        x = np.arange(x0, x1, dtype=np.float32)[None] + (0.5 - xa)
        y = np.arange(y0, y1, dtype=np.float32)[:, None] + (0.5 - ya)
        dx, dy = xb - xa, yb - ya
        t = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)  # position along the rod
        radius = ra + (rb - ra) * t
        u, v = (x - t * dx) / radius, (y - t * dy) / radius
        bulge = np.sqrt(np.maximum(1 - u * u - v * v, 0))
        z = za + (zb - za) * t - bulge * girth * (part[2] + (part[3] - part[2]) * t)
        hit = (bulge > 0) & (z < depth[box])
        depth[box][hit] = z[hit]
        normal[box][hit] = np.stack([u[hit], -v[hit], -bulge[hit]], -1)
        colour[box][hit] = np.where((t[hit] < 0.65)[:, None], near, far)
    return depth, normal, colour


def draw_frame(body, look, room, rng):
    """Draw one frame, (frame_H, frame_W, 3) uint8.

    Parameters
    ----------
    body : dict of str to (3,) array
        One frame of `skeleton`.
    look, room : SimpleNamespace
        From `scenery`; the room has SUPERSAMPLE times the frame's size.
    rng : numpy.random.Generator
        Draws the sensor noise.
    """
    picture, dark = room.picture.copy(), 0.0
    for name, size, weight in (("l_ankle", 0.13, 0.9), ("r_ankle", 0.13, 0.9), ("pelvis", 0.36, 0.6)):
        x, y, z = body[name].tolist()
        x, z, size = x - 0.13 * y * np.sign(room.lamp[0]), z + 0.15 * y, size + 0.12 * y
        dark = dark + weight * np.exp(-(((room.z - z) ** 2 + (room.x - x) ** 2) / size**2))
    picture[room.first:] *= (0.25 + 0.75 * np.exp(-dark))[..., None]
    depth, normal, colour = draw_body(body, look, picture.shape[:2])
    on = depth < np.inf
    normal = normal[on]
    light = 0.42 + 0.14 * normal[:, 1] + 0.62 * np.maximum(normal @ room.lamp, 0)
    light *= (0.7 - 0.3 * normal[:, 2]) * (0.78 + 0.3 * room.glow[on])  # ambient occlusion at grazing angles
    picture[on] = colour[on] * light[:, None]
    n = SUPERSAMPLE
    small = picture.reshape(picture.shape[0] // n, n, picture.shape[1] // n, n, 3).mean((1, 3))
    small = 255 * np.minimum(small, 1) ** (1 / 2.2) + rng.normal(0, 0.8, small.shape)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


BONES = (  # warm colours for the person's right side, cool ones for the left
    ("neck", "r_shoulder", (255, 60, 0)), ("r_shoulder", "r_elbow", (255, 120, 0)),
    ("r_elbow", "r_wrist", (240, 170, 0)), ("neck", "l_shoulder", (0, 150, 60)),
    ("l_shoulder", "l_elbow", (0, 190, 90)), ("l_elbow", "l_wrist", (0, 200, 170)),
    ("neck", "r_hip", (200, 0, 40)), ("r_hip", "r_knee", (230, 0, 0)), ("r_knee", "r_ankle", (170, 60, 20)),
    ("neck", "l_hip", (0, 90, 200)), ("l_hip", "l_knee", (0, 40, 255)), ("l_knee", "l_ankle", (70, 0, 220)),
    ("neck", "nose", (150, 0, 150)), ("nose", "r_ear", (255, 0, 130)), ("nose", "l_ear", (120, 60, 255)),
)


def draw_pose(body, size):
    """Draw the bones of one frame on white, farthest first, (frame_H, frame_W, 3) uint8."""
    height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    image, radius = Image.new("RGB", (width, height), "white"), 0.02 * height
    draw = ImageDraw.Draw(image)
    for a, b, colour in sorted(BONES, key=lambda bone: -body[bone[0]][2] - body[bone[1]][2]):
        columns, rows, _ = project([body[a], body[b]], (height, width))
        ends = list(zip(columns.tolist(), rows.tolist(), strict=True))
        draw.line(ends, fill=colour, width=max(round(2 * radius), 1))
        for x, y in ends:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    return np.asarray(image.reduce(SUPERSAMPLE))
