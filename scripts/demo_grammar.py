"""The small language of the demo model: one grammar that both writes text and checks it.

A document is a short story, a letter, an introduction, or a few question-and-answer lines about a small
fixed world. Each kind of text is defined by a pattern. `write` walks a pattern and chooses a value for every
slot; `parse` walks the same pattern along a text and accepts it only if one set of values explains all of it.
A hero keeps the same name and pronoun, a red ball stays a red ball, each place has its own spots, two apples
and three more are five, and an answer repeats the fact stated before it.

The notation of a pattern::

    literal text
    {slot}          the value of a slot: chosen at its first occurrence, repeated at every later one
    {slot.form}     another form of that value: {hero.his}, {colour.a}, {place.in}, {animal.food}
    (one|another)   one of several
    [maybe]         something or nothing
    <pattern>       a part with separate slots

This file is independent of tokenizers and models. `make_demo_model.py` and the tests of the demo model use it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

Bindings = Mapping[str, str]

# --- The world -----------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    """Split a line into words."""
    return tuple(text.split())


GIRLS = words(
    "Anna Mia Lily Emma Ella Rosa Nora Clara Alice Lucy Julia Sara Eva Ida Maria Sofia Hannah Laura Olivia Ruby"
)
BOYS = words(
    "Tom Ben Max Leo Paul Jack Oscar Felix Hugo Peter David Adam Noah Emil Simon Victor Henry Oliver Theo Carl"
)
NAMES = (*GIRLS, *BOYS)

WOMEN = ("mother", "grandmother", "sister", "aunt")
MEN = ("father", "grandfather", "brother", "uncle")

# The preposition ("in the forest", "on the hill"), and the spots that exist only there.
PLACES = {
    "forest": ("in", ("under an old oak", "behind a fallen log", "beside a small stream")),
    "park": ("in", ("under a wooden bench", "behind the swings", "beside the fountain")),
    "beach": ("at", ("in the warm sand", "behind a sand castle", "beside a rock pool")),
    "garden": ("in", ("under the apple tree", "behind the shed", "beside the roses")),
    "market": ("at", ("under a long table", "behind a fruit stall", "beside a straw basket")),
    "farm": ("on", ("under an old cart", "behind the barn", "beside the well")),
    "lake": ("at", ("under a wooden boat", "behind the reeds", "beside the water")),
    "hill": ("on", ("under a pine tree", "behind a stone wall", "beside the steep path")),
    "school": ("at", ("under a desk", "behind the blackboard", "beside the big map")),
    "library": ("in", ("under a reading chair", "behind a tall shelf", "beside a pile of books")),
    "castle": ("in", ("under the stairs", "behind the iron gate", "beside the round tower")),
    "river": ("at", ("under the stone bridge", "behind a water wheel", "beside a fishing net")),
    "station": ("at", ("under the big clock", "behind a blue train", "beside a heavy suitcase")),
}


@dataclass(frozen=True, slots=True)
class Animal:
    """Facts about an animal."""

    home: str
    sound: str
    food: str
    young: str
    legs: str
    size: int  # only clearly different sizes are ever compared


ANIMALS = {
    "cat": Animal("in the house", "Meow", "fish", "kitten", "four", 2),
    "dog": Animal("in the kennel", "Woof", "meat", "puppy", "four", 3),
    "cow": Animal("in the barn", "Moo", "grass", "calf", "four", 5),
    "duck": Animal("on the pond", "Quack", "seeds", "duckling", "two", 2),
    "horse": Animal("in the stable", "Neigh", "hay", "foal", "four", 5),
    "sheep": Animal("in the field", "Baa", "clover", "lamb", "four", 4),
    "pig": Animal("in the sty", "Oink", "potatoes", "piglet", "four", 4),
    "hen": Animal("in the hen house", "Cluck", "corn", "chick", "two", 2),
    "frog": Animal("by the pond", "Croak", "flies", "tadpole", "four", 1),
    "owl": Animal("in the old tower", "Hoot", "worms", "owlet", "two", 2),
    "mouse": Animal("in a small hole", "Squeak", "cheese", "pup", "four", 1),
    "bear": Animal("in a cave", "Growl", "honey", "cub", "four", 5),
    "elephant": Animal("on the plain", "Toot", "leaves", "calf", "four", 6),
    "goat": Animal("on the mountain", "Maa", "herbs", "kid", "four", 4),
    "bee": Animal("in a hive", "Buzz", "nectar", "larva", "six", 0),
    "goose": Animal("by the river", "Honk", "oats", "gosling", "two", 3),
}

COLOURS = words("red blue green yellow white black orange purple silver golden")
THINGS = words("ball kite book hat key coin boat doll drum bell cup spoon box ring lamp scarf")
TRAITS = words("kind brave curious clever quiet cheerful little friendly gentle careful patient young")
HOBBIES = ("to sing", "to draw", "to read", "to dance", "to swim", "to run", "to paint", "to climb trees")
FEELINGS = words("happy proud glad cheerful thankful")
GEAR = {
    "rainy": "umbrella",
    "sunny": "hat",
    "snowy": "sledge",
    "windy": "kite",
    "cold": "coat",
    "foggy": "lantern",
    "cloudy": "raincoat",
    "warm": "water bottle",
}
FRUITS = words("apples pears plums cherries nuts lemons peaches berries")
DISHES = {  # with two ingredients
    "apple pie": ("apples", "flour"),
    "pancake": ("eggs", "milk"),
    "tomato soup": ("tomatoes", "salt"),
    "cheese sandwich": ("bread", "cheese"),
    "chocolate cake": ("chocolate", "sugar"),
    "fruit salad": ("bananas", "grapes"),
    "honey cookie": ("honey", "butter"),
}
PLANTS = {
    "sunflower": "yellow",
    "rose": "red",
    "lily": "white",
    "violet": "purple",
    "cornflower": "blue",
    "tulip": "pink",
}
VERBS = {"found": "find", "lost": "lose", "saw": "see", "hid": "hide", "bought": "buy", "left": "leave"}

NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
VALUE = {word: value for value, word in enumerate(NUMBERS)}
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = words("spring summer autumn winter")
CYCLES = (DAYS, MONTHS, SEASONS)

OPPOSITES = dict(
    pair.split("-")
    for pair in words(
        "big-small hot-cold day-night up-down happy-sad fast-slow old-new light-dark wet-dry full-empty "
        "open-closed high-low early-late hard-soft left-right long-short loud-quiet strong-weak thick-thin clean-dirty"
    )
)
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}

COLOUR_OF = {
    "grass": "green", "sky": "blue", "snow": "white", "sun": "yellow", "night": "black", "blood": "red",
    "chocolate": "brown", "sea": "blue", "milk": "white", "coal": "black", "gold": "golden",
}  # fmt: skip
USES = {
    "knife": "cut bread", "spoon": "eat soup", "pencil": "write letters", "key": "open doors",
    "broom": "sweep the floor", "lamp": "light the room", "clock": "tell the time", "cup": "drink tea",
    "bed": "sleep", "oven": "bake bread", "boat": "cross the river", "needle": "sew clothes",
    "map": "find the way", "bell": "call people",
}  # fmt: skip
FACTS = {
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many hours are in a day?": "There are twenty-four hours in a day.",
    "How many minutes are in an hour?": "There are sixty minutes in an hour.",
    "How many seasons are in a year?": "There are four seasons in a year.",
    "How many fingers are on a hand?": "There are five fingers on a hand.",
    "How many wheels does a bicycle have?": "A bicycle has two wheels.",
    "How many wheels does a car have?": "A car has four wheels.",
    "How many sides does a triangle have?": "A triangle has three sides.",
    "How many sides does a square have?": "A square has four sides.",
    "What is the first day of the week?": "The first day of the week is Monday.",
    "What is the last day of the week?": "The last day of the week is Sunday.",
    "What is the first month of the year?": "The first month of the year is January.",
    "What is the last month of the year?": "The last month of the year is December.",
    "When does the sun rise?": "The sun rises in the morning.",
    "When does the sun set?": "The sun sets in the evening.",
    "When do we see the stars?": "We see the stars at night.",
    "What is ice made of?": "Ice is made of frozen water.",
    "What is bread made of?": "Bread is made of flour and water.",
    "What is a window made of?": "A window is made of glass.",
    "What do bees make?": "Bees make honey.",
    "What do hens lay?": "Hens lay eggs.",
    "What do cows give?": "Cows give milk.",
    "Where do fish live?": "Fish live in the water.",
    "Where do birds build their nests?": "Birds build their nests in the trees.",
    "Who bakes the bread?": "The baker bakes the bread.",
    "Who teaches the children?": "The teacher teaches the children.",
    "Who helps sick people?": "The doctor helps sick people.",
    "Who grows the corn?": "The farmer grows the corn.",
    "Who catches the fish?": "The fisherman catches the fish.",
    "What are the days of the week?": "The days of the week are " + ", ".join(DAYS[:-1]) + " and Sunday.",
    "What are the four seasons?": "The four seasons are spring, summer, autumn and winter.",
}

# --- Forms: how a value looks in a sentence ------------------------------------------------------------


def with_article(word: str) -> str:
    """Put "a" or "an" in front. Looking at the first letter suffices for all words here."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def capitalised(text: str) -> str:
    """Capitalise only the first letter."""
    return text[:1].upper() + text[1:]


def is_female(person: str) -> bool:
    """Whether a name or relative takes "she"."""
    return person in GIRLS or person in WOMEN


def shifted(value: str, offset: int) -> str:
    """Step cyclically through the days, months or seasons."""
    cycle = next(cycle for cycle in CYCLES if value in cycle)
    return cycle[(cycle.index(value) + offset) % len(cycle)]


FORMS: dict[str, Callable[[str], str]] = {
    "": str,
    "cap": capitalised,
    "lower": str.lower,
    "a": with_article,
    "he": lambda person: "she" if is_female(person) else "he",
    "He": lambda person: "She" if is_female(person) else "He",
    "him": lambda person: "her" if is_female(person) else "him",
    "his": lambda person: "her" if is_female(person) else "his",
    "His": lambda person: "Her" if is_female(person) else "His",
    "child": lambda person: "girl" if is_female(person) else "boy",
    "in": lambda place: f"{PLACES[place][0]} the {place}",
    "base": VERBS.__getitem__,
    "digit": lambda number: str(VALUE[number]),
    "home": lambda animal: ANIMALS[animal].home,
    "sound": lambda animal: ANIMALS[animal].sound,
    "food": lambda animal: ANIMALS[animal].food,
    "young": lambda animal: ANIMALS[animal].young,
    "legs": lambda animal: ANIMALS[animal].legs,
    "gear": GEAR.__getitem__,
    "bloom": PLANTS.__getitem__,
    "first": lambda dish: DISHES[dish][0],
    "second": lambda dish: DISHES[dish][1],
    "opposite": OPPOSITES.__getitem__,
    "colour": COLOUR_OF.__getitem__,
    "use": USES.__getitem__,
    "answer": FACTS.__getitem__,
    "next": lambda value: shifted(value, 1),
    "before": lambda value: shifted(value, -1),
}

# --- Slots: which values are possible, given the values of other slots ---------------------------------


@dataclass(frozen=True, slots=True)
class Variable:
    """A slot: ``candidates`` may use only the bound values of ``needs``."""

    candidates: Callable[[Bindings], Sequence[str]]
    needs: tuple[str, ...] = ()


def one_of(values: Sequence[str], *different_from: str) -> Variable:
    """Any of the values, except those of the slots ``different_from``."""

    def candidates(bindings: Bindings) -> Sequence[str]:
        taken = {bindings[slot] for slot in different_from}
        return [value for value in values if value not in taken] if taken else values

    return Variable(candidates, different_from)


def spots(bindings: Bindings) -> Sequence[str]:
    """The spots of the place."""
    return PLACES[bindings["place"]][1]


def sums(bindings: Bindings) -> Sequence[str]:
    """The only correct total."""
    return [NUMBERS[VALUE[bindings["n"]] + VALUE[bindings["m"]]]]


def addition(bindings: Bindings) -> Sequence[str]:
    """The only correct sum."""
    return [NUMBERS[VALUE[bindings["x"]] + VALUE[bindings["y"]]]]


def counting(bindings: Bindings) -> Sequence[str]:
    """The numbers from ``low`` to ``high``, spelled out."""
    return [", ".join(NUMBERS[VALUE[bindings["low"]] : VALUE[bindings["high"]] + 1])]


def smaller_animals(bindings: Bindings) -> Sequence[str]:
    """Animals that are clearly smaller than ``bigger``."""
    return [name for name, animal in ANIMALS.items() if animal.size < ANIMALS[bindings["bigger"]].size]


VARIABLES: dict[str, Variable] = {
    "gap": one_of((" ", "\n")),
    "hero": one_of(NAMES),
    "friend": one_of(NAMES, "hero"),
    "relative": one_of(WOMEN + MEN),
    "trait": one_of(TRAITS),
    "hobby": one_of(HOBBIES),
    "feeling": one_of(FEELINGS),
    "place": one_of(tuple(PLACES)),
    "spot": Variable(spots, ("place",)),
    "spot2": Variable(lambda b: [spot for spot in spots(b) if spot != b["spot"]], ("place", "spot")),
    "thing": one_of(THINGS),
    "colour": one_of(COLOURS),
    "verb": one_of(tuple(VERBS)),
    "weather": one_of(tuple(GEAR)),
    "animal": one_of(tuple(ANIMALS)),
    "bigger": one_of([name for name, animal in ANIMALS.items() if animal.size > 0]),
    "smaller": Variable(smaller_animals, ("bigger",)),
    "fruit": one_of(FRUITS),
    "dish": one_of(tuple(DISHES)),
    "plant": one_of(tuple(PLANTS)),
    "age": one_of(NUMBERS[4:13]),
    "n": one_of(NUMBERS[2:11]),
    "m": one_of(NUMBERS[2:11]),
    "total": Variable(sums, ("n", "m")),
    "x": one_of(NUMBERS[1:11]),
    "y": one_of(NUMBERS[1:11]),
    "sum": Variable(addition, ("x", "y")),
    "low": one_of(NUMBERS[1:11]),
    "high": Variable(lambda b: NUMBERS[VALUE[b["low"]] + 2 : VALUE[b["low"]] + 9], ("low",)),
    "counting": Variable(counting, ("low", "high")),
    "day": one_of(DAYS),
    "month": one_of(MONTHS),
    "season": one_of(SEASONS),
    "word": one_of(tuple(OPPOSITES)),
    "substance": one_of(tuple(COLOUR_OF)),
    "tool": one_of(tuple(USES)),
    "fact": one_of(tuple(FACTS)),
}

# --- Stories -------------------------------------------------------------------------------------------

OPENING = (
    "((Once upon a time|Long ago|Many years ago), there (was|lived) {trait.a} {hero.child} named {hero}. "
    "[{hero.He} (loved|liked) {hobby}. ]"
    "One {weather} (day|morning|afternoon), ({hero.he}|{hero}) (went|walked|ran) to the {place}. "
    "|One {weather} (day|morning|afternoon), {trait.a} {hero.child} named {hero} "
    "(went|walked|ran) to the {place}. "
    "|{hero} was {trait.a} {hero.child}. "
    "One {weather} (day|morning|afternoon), ({hero.he}|{hero}) (went|walked|ran) to the {place}. )"
)
ALONE = (
    "({hero} was {feeling} all day long.|{hero.He} went home and felt {feeling}."
    "|It was a (good|lovely) day for {hero}.)"
)
TOGETHER = (
    "({hero} was {feeling}, and so was {friend}.|It was a (good|lovely) day for {hero} and {friend}."
    "|From that day on, {hero} and {friend} were (good|best) friends.)"
)


WHERE = "Where did {hero} go?{gap}Answer: {hero} went to the {place}."

# The middle and the end of every story.
PLOTS: dict[str, str] = {
    "returned": (
        "{hero.He} found {colour.a} {thing} {spot}. "
        "(The {thing} belonged to {friend}|{hero.He} knew that it belonged to {friend}), "
        "so {hero} (took|brought|carried) it back to {friend.him}. "
        '{friend} (smiled|laughed) and said, "Thank you, {hero}!" '
        "[Then they played with the {colour} {thing} until the evening. ]" + TOGETHER
    ),
    "missing": (
        "{hero.He} wanted to play with {hero.his} {colour} {thing}, but it was (gone|missing). "
        "{hero.He} looked {spot}, but the {thing} was not there. "
        "(Then {friend} came to help.|So {hero.he} asked {friend} for help.) "
        "{friend} looked {spot2} and found the {colour} {thing}. "
        '["Here it is!" said {friend}. ]' + TOGETHER
    ),
    "weather": (
        "{hero.His} {relative} had said, "
        '"It is {weather} today, so take your {weather.gear} with you." '
        "{hero} had listened to {hero.his} {relative} and had brought the {weather.gear}. "
        "(There {hero.he} met {friend}|{friend} was there too), but {friend} had no {weather.gear}. "
        '"We can share my {weather.gear}," said {hero}. ' + TOGETHER
    ),
    "hungry": (
        "{hero.He} (saw|met) a hungry {animal} {spot}. "
        '"{animal.sound}, {animal.sound.lower}!" said the {animal}. '
        "{hero} gave the {animal} some {animal.food}. "
        "The {animal} ate the {animal.food} and was not hungry any more. "
        "[Then it went back to its home {animal.home}. ]" + ALONE
    ),
    "afraid": (
        "{hero.His} {relative} came along. "
        "(Suddenly|After a while), they heard a (strange|loud) noise {spot}. "
        "{hero} was afraid and held the hand of {hero.his} {relative}. "
        '"Do not be afraid," said {hero.his} {relative}. "It is only {animal.a}." '
        '"{animal.sound}!" said the {animal}, and {hero} laughed. ' + ALONE
    ),
    "birthday": (
        "It was the birthday of {friend}, and {hero} wanted to give {friend.him} a present. "
        "{hero.He} (bought|found) {colour.a} {thing} and put it in a box. "
        "{friend} opened the box and saw the {colour} {thing}. "
        '["What a (lovely|beautiful) {thing}!" said {friend}. ]' + TOGETHER
    ),
    "counting": (
        "{hero.He} (found|picked) {n} {fruit} {spot}. "
        "Then {friend} came and gave {hero.him} {m} more {fruit}. "
        "Now {hero} had {total} {fruit}. "
        "(They put|{hero} put) the {total} {fruit} in {colour.a} basket. " + TOGETHER
    ),
    "cooking": (
        "There {hero} met {hero.his} {relative}. They wanted to make {dish.a}. "
        "{hero} had {dish.first}, and {hero.his} {relative} had {dish.second}. "
        "(Soon the {dish} was ready|They made the {dish} together), and they ate it {spot}. "
        '["This is the best {dish} of all," said {hero}. ]' + ALONE
    ),
    "planting": (
        "{hero.He} planted a little {plant} {spot}. "
        "Every day, {hero.he} gave the {plant} some water. "
        "After {n} weeks, the {plant} was tall and had {plant.bloom} flowers. "
        "[{hero} showed the {plant.bloom} flowers to {hero.his} {relative}. ]" + ALONE
    ),
}

# --- Questions -----------------------------------------------------------------------------------------

STATEMENT = "{hero} {verb} {colour.a} {thing} {place.in}."
ABOUT = (
    "What did {hero} {verb.base} {place.in}?{gap}Answer: {hero} {verb} {colour.a} {thing} {place.in}.",
    "Where did {hero} {verb.base} the {thing}?{gap}Answer: {hero} {verb} the {thing} {place.in}.",
    "Who {verb} the {colour} {thing}?{gap}Answer: {hero} {verb} the {colour} {thing}.",
    "What colour was the {thing} of {hero}?{gap}Answer: The {thing} of {hero} was {colour}.",
)


def any_question(*questions: str) -> str:
    return "Question: (" + "|".join(questions) + ")"


WORLD = (
    "{fact}{gap}Answer: {fact.answer}",
    "Where does the {animal} live?{gap}Answer: The {animal} lives {animal.home}.",
    "What does the {animal} say?{gap}Answer: The {animal} says {animal.sound}.",
    "What does the {animal} eat?{gap}Answer: The {animal} eats {animal.food}.",
    "What is a young {animal} called?{gap}Answer: A young {animal} is called {animal.young.a}.",
    "How many legs does {animal.a} have?{gap}Answer: {animal.a.cap} has {animal.legs} legs.",
    "Which animal is bigger, the {bigger} or the {smaller}?{gap}Answer: The {bigger} is bigger than the {smaller}.",
    "Which animal is smaller, the {bigger} or the {smaller}?{gap}Answer: The {smaller} is smaller than the {bigger}.",
    "What is the opposite of {word}?{gap}Answer: The opposite of {word} is {word.opposite}.",
    "What is {x} plus {y}?{gap}Answer: {x.cap} plus {y} is {sum}.",
    "What is {x.digit} plus {y.digit}?{gap}Answer: {x.digit} plus {y.digit} is {sum.digit}.",
    "What is {sum} minus {x}?{gap}Answer: {sum.cap} minus {x} is {y}.",
    "What day comes after {day}?{gap}Answer: {day.next} comes after {day}.",
    "What day comes before {day}?{gap}Answer: {day.before} comes before {day}.",
    "What month comes after {month}?{gap}Answer: {month.next} comes after {month}.",
    "What month comes before {month}?{gap}Answer: {month.before} comes before {month}.",
    "What season comes after {season}?{gap}Answer: {season.next.cap} comes after {season}.",
    "What colour is the {substance}?{gap}Answer: The {substance} is {substance.colour}.",
    "What do we use {tool.a} for?{gap}Answer: We use {tool.a} to {tool.use}.",
)
WORLD_LINE = "<" + any_question(*WORLD).replace("{gap}", " ") + ">"

INTRODUCTION = (
    "(Hello!|Hello, everyone!|Good morning!) My name is {hero}. "
    "I am {trait.a} {hero.child}, and I am {age} years old. I live near the {place} with my {relative}. "
    "My favourite colour is {colour}, and I have {colour.a} {thing}."
    "[ My best friend is {friend}, and {friend.he} likes {hobby}.][ What is your name?| Nice to meet you!]"
)
LETTER = (
    "Dear {friend},\n(today|yesterday) I went to the {place} with my {relative}. "
    "It was (a {weather} day|{weather}), so we took {weather.gear.a}. "
    'We saw {animal.a} {spot}, and it said, "{animal.sound}!" '
    "[I gave it some {animal.food}. ](I hope you are well.|Please write to me soon.)\nYour friend,\n{hero}"
)
COUNT = "(Let us count|Count) from {low} to {high}: {counting}."

# --- The language: kinds of text with their frequencies -------------------------------------------------

LANGUAGE: dict[str, tuple[float, str]] = {
    **{f"story/{name}": (3.0, OPENING + plot) for name, plot in PLOTS.items()},
    **{f"reading/{name}": (0.5, f"{OPENING}{plot}\nQuestion: {WHERE}") for name, plot in PLOTS.items()},
    "statement": (14.0, STATEMENT + "(\n| )" + any_question(*ABOUT)),
    "question": (2.0, any_question(*ABOUT)),
    "world": (12.0, any_question(*WORLD)),
    "world lines": (4.0, WORLD_LINE + "\n" + WORLD_LINE + "[\n" + WORLD_LINE + "[\n" + WORLD_LINE + "]]"),
    "introduction": (2.5, INTRODUCTION),
    "letter": (2.5, LETTER),
    "counting": (1.5, COUNT),
}
BLANK_LINE = "\n\n"  # between the texts of a document that has several
MORE_TEXT_SHARE = 0.12  # probability that another text follows

# --- Patterns: the notation parsed into a tree ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal:
    """Fixed text."""

    text: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for the value of a variable, in one of its forms."""

    variable: str
    forms: tuple[str, ...]

    def show(self, value: str) -> str:
        """A value in this slot's form."""
        for form in self.forms:
            value = FORMS[form](value)
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several patterns; "maybe" is a choice between a pattern and nothing."""

    options: tuple["Pattern", ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """A pattern with separate slots."""

    pattern: "Pattern"


Node: TypeAlias = "Literal | Slot | Choice | Scope"
Pattern: TypeAlias = tuple[Node, ...]

CLOSING = {"(": ")", "[": "]", "<": ">"}


def read_pattern(notation: str) -> Pattern:
    """Parse the notation described at the top of this file."""
    options, end = read_options(notation, 0, "")
    if end != len(notation) or len(options) != 1:
        raise ValueError(f"unbalanced pattern at character {end}: {notation!r}")
    return options[0]


def read_options(notation: str, start: int, closing: str) -> tuple[tuple[Pattern, ...], int]:
    """Parse alternatives up to the ``closing`` bracket; return them and the bracket's position."""
    options: list[Pattern] = []
    nodes: list[Node] = []
    while start < len(notation) and notation[start] != closing:
        opening = notation[start]
        if opening == "|":
            options.append(tuple(nodes))
            nodes = []
        elif opening == "{":
            end = notation.index("}", start)
            variable, *forms = notation[start + 1 : end].split(".")
            nodes.append(Slot(variable, tuple(forms)))
            start = end
        elif opening in CLOSING:
            inner, start = read_options(notation, start + 1, CLOSING[opening])
            if opening == "<":
                nodes.append(Scope((Choice(inner),)))
            else:
                nodes.append(Choice((*inner, ()) if opening == "[" else inner))
        else:
            end = next((i for i in range(start, len(notation)) if notation[i] in "|{}()[]<>"), len(notation))
            if end == start:
                raise ValueError(f"stray {opening!r} at character {start}: {notation!r}")
            nodes.append(Literal(notation[start:end]))
            start = end - 1
        start += 1
    if closing and start == len(notation):
        raise ValueError(f"missing {closing!r} in {notation!r}")
    return (*options, tuple(nodes)), start


@cache
def language() -> dict[str, Pattern]:
    """The patterns of the language by kind."""
    return {kind: read_pattern(notation) for kind, (_, notation) in LANGUAGE.items()}


# --- Writing -------------------------------------------------------------------------------------------

Pair: TypeAlias = tuple[str, str]  # a name and a place


def pairs_of(bindings: Bindings) -> set[Pair]:
    """The pairs of a name and a place that occur in a text."""
    names = [bindings[slot] for slot in ("hero", "friend") if slot in bindings]
    return {(name, bindings["place"]) for name in names if "place" in bindings}


def bind(variable: str, bindings: dict[str, str], rng: random.Random) -> str:
    """Return a variable's value; if it has none, choose one after binding the variables that it needs."""
    if variable not in bindings:
        for needed in VARIABLES[variable].needs:
            bind(needed, bindings, rng)
        bindings[variable] = rng.choice(VARIABLES[variable].candidates(bindings))
    return bindings[variable]


def write(pattern: Pattern, bindings: dict[str, str], rng: random.Random) -> str:
    """Write one text; ``bindings`` may already contain values, and all others that are used are added to it."""
    parts = []
    for node in pattern:
        match node:
            case Literal(text):
                parts.append(text)
            case Slot(variable):
                parts.append(node.show(bind(variable, bindings, rng)))
            case Choice(options):
                parts.append(write(rng.choice(options), bindings, rng))
            case Scope(inner):
                parts.append(write(inner, {}, rng))
    return "".join(parts)


def write_text(rng: random.Random, unseen: frozenset[Pair]) -> str:
    """Write one text of any kind without any of the ``unseen`` pairs."""
    kinds = list(LANGUAGE)
    while True:
        [kind] = rng.choices(kinds, [weight for weight, _ in LANGUAGE.values()])
        bindings: dict[str, str] = {}
        text = write(language()[kind], bindings, rng)
        if unseen.isdisjoint(pairs_of(bindings)):
            return text


def write_document(rng: random.Random, unseen: frozenset[Pair] = frozenset()) -> str:
    """Write a document: mostly one text, sometimes several."""
    texts = [write_text(rng, unseen)]
    while rng.random() < MORE_TEXT_SHARE:
        texts.append(write_text(rng, unseen))
    return BLANK_LINE.join(texts)


# --- Checking ------------------------------------------------------------------------------------------


class GrammarError(ValueError):
    """The text is not in the language; ``position`` is where the best match ended."""

    def __init__(self, text: str, position: int) -> None:
        super().__init__(f"cannot continue after {text[:position][-60:]!r} with {text[position:][:40]!r}")
        self.position = position


class Matcher:
    """Matches one text against patterns, with backtracking, and remembers the furthest position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.furthest = 0

    def match(self, pattern: Pattern, start: int, bindings: Bindings) -> Iterator[tuple[int, Bindings]]:
        """Yield the end of every match of ``pattern`` that begins at ``start``, with the values of the match."""
        self.furthest = max(self.furthest, start)
        if not pattern:
            yield start, bindings
            return
        node, rest = pattern[0], pattern[1:]
        match node:
            case Literal(text):
                if self.text.startswith(text, start):
                    yield from self.match(rest, start + len(text), bindings)
            case Slot(variable):
                for bound in self.assignments(variable, bindings):
                    shown = node.show(bound[variable])
                    if self.text.startswith(shown, start):
                        yield from self.match(rest, start + len(shown), bound)
            case Choice(options):
                for option in options:
                    yield from self.match(option + rest, start, bindings)
            case Scope(inner):
                for end, _ in self.match(inner, start, {}):
                    yield from self.match(rest, end, bindings)

    def assignments(self, variable: str, bindings: Bindings) -> Iterator[Bindings]:
        """Yield ``bindings`` with every value that the variable can have, or with the one it has."""
        if variable in bindings:
            yield bindings
            return
        missing = [needed for needed in VARIABLES[variable].needs if needed not in bindings]
        if missing:
            for bound in self.assignments(missing[0], bindings):
                yield from self.assignments(variable, bound)
            return
        for value in VARIABLES[variable].candidates(bindings):
            yield {**bindings, variable: value}


def parse_text(text: str) -> str:
    """Find the kind of one text.

    Raises:
        GrammarError: no pattern matches all of it.
    """
    matcher = Matcher(text)
    for kind, pattern in language().items():
        if any(end == len(text) for end, _ in matcher.match(pattern, 0, {})):
            return kind
    raise GrammarError(text, matcher.furthest)


def parse(document: str) -> list[str]:
    """Find the kinds of all texts of a document, in order.

    Raises:
        GrammarError: one of them is not in the language.
    """
    return [parse_text(text) for text in document.split(BLANK_LINE)]
