"""Families of near-duplicates among emoji: what a split must never cut. ties.py has what holds for
drawings too.

A model that has seen "man pilot" has seen "woman pilot", so a random split flatters retrieval. The
family of an emoji comes from the first rule that speaks:

1. **Topics** (`WHOLE_TOPICS`): the subgroup is one family, because its members differ by a detail
   only: keycaps, arrows, squares and circles, hearts in all colours, hand shapes, portraits,
       couples.
2. **Code points** (`RANGES`): clock faces, moon phases.
3. **Names** (`ALIKE`): a pattern that the whole name matches, e.g. mailboxes with flag up or down,
   speakers of three volumes, books in four colours, "no ..." signs.
4. **What is left of the name** when gender, direction and view are taken out: "woman walking:
   facing right" is "walking", "oncoming taxi" is "taxi", "dog face" is "dog".

A family is one thing in several versions, in picture or in words; different things of one kind
(lemon and tangerine, hospital and school) stay apart, since telling them apart is the task.

Last, `merged` joins families that something else ties.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

WHOLE_TOPICS = {
    "keycap": "keycap",
    "arrow": "arrow",
    "geometric": "geometric shape",
    "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand",
    "hand-single-finger": "hand",
    "hand-fingers-closed": "hand",
    "cat-face": "cat",
    "monkey-face": "monkey",
    "person": "portrait",
    "family": "couple or family",
    "gender": "gender sign",
    "warning": "warning or prohibition sign",
}

RANGES = [
    (0x1F550, 0x1F567, "clock face"),
    (0x1F311, 0x1F31D, "moon"),
]

ALIKE = {
    # smileys
    "grinning": (
        r"(grinning|beaming) .*face.*|grinning face.*|face with tears of joy|rolling on the floor"
        r" laughing"
    ),
    "smiling": (
        r"smiling face( with (smiling eyes|tear|halo|hearts|open hands))?|(slightly"
        r" smiling|upside-down|relieved|melting) face"
    ),
    "kissing": r"kissing face.*|face blowing a kiss",
    "heart-eyes": r"smiling face with heart-eyes|star-struck",
    "tongue": r".*face with tongue|zany face|face savoring food",
    "horns": r".*face with horns",
    "angry": r"(angry|enraged) face|face with (steam from nose|symbols on mouth)",
    "neutral": (
        r"(neutral|expressionless|smirking|unamused|dotted line) face|face (without mouth|in"
        r" clouds|exhaling)|"
        r"face with (diagonal mouth|rolling eyes)"
    ),
    "frowning face": (
        r"(slightly )?frowning face.*|(loudly )?crying face|(anxious|downcast) face with sweat|sad"
        r" but relieved face|"
        r"(confused|worried|pensive|disappointed|anguished|hushed|astonished|fearful|flushed|pleading)"
        r" face|"
        r"face (with open mouth|screaming in fear|holding back tears)"
    ),
    "weary": r"(weary|tired|confounded|persevering|yawning) face",
    "mask": r"face with (medical mask|thermometer|head-bandage)",
    "hand over mouth": r"face with (open eyes and )?hand over mouth|face with peeking eye",
    "sick": r"nauseated face|face vomiting",
    "sleepy": r"(sleepy|sleeping|drooling) face",
    "glasses": r"smiling face with sunglasses|nerd face|face with monocle",
    "shaking": r"shaking face|head shaking .*",
    "dizzy face": r"face with (crossed-out|spiral) eyes|woozy face",
    "skull": r"skull.*|pirate flag",
    "alien": r"alien.*",
    "ogre": r"ogre|goblin",
    "heart": r"(?!anatomical).*\bhearts?\b.*(?<!eyes)|(heart|spade|diamond|club) suit",
    "speech balloon": r".*(speech|thought) (balloon|bubble)|right anger bubble",
    # people
    "claus": r"(santa|mrs\.|mx) claus",
    "crown person": r"prince|princess|person with crown",
    "merperson": r"mer(person|man|maid)",
    "pregnant": r"pregnant .*|breast-feeding|.* feeding baby",
    "dancing": r"(wo)?man dancing|ballet dancer",
    "wheelchair": r".*wheelchair.*",
    "white cane": r".*white cane.*",
    "turban": r".* wearing turban",
    "bust": r"busts? in silhouette|speaking head",
    "family": r"family.*",
    "biking": r".*biking",
    "eye": r"eyes?|eye in speech bubble",
    "ear": r"ear( with hearing aid)?",
    "mechanical limb": r"mechanical (arm|leg)",
    "mouth": r"mouth|biting lip|kiss mark",
    "hands": r"open hands|palms up together|raising hands",
    "praying hands": r"(clapping|folded) hands",
    # animals and plants
    "dog": r"dog|dog face|(guide|service) dog|poodle",
    "cat": r"(black )?cat|cat face",
    "monkey": r"monkey( face)?",
    "cattle": r"cow|cow face|ox|water buffalo|bison|taurus",
    "sheep": r"ram|ewe|aries",
    "goat": r"goat|capricorn",
    "pig": r"pig( face| nose)?|boar",
    "big cat": r"tiger|tiger face|leopard",
    "lion": r"lion|leo",
    "scorpion": r"scorpion?",
    "crab": r"crab|cancer",
    "camel": r"(two-hump )?camel",
    "mouse": r"mouse( face)?|rat",
    "bear": r"(polar )?bear",
    "horse": r"horse( face)?|unicorn|carousel horse|horse racing",
    "chick": r".*chick",
    "chicken": r"chicken|rooster",
    "bird": r"(black )?bird",
    "swan": r"goose|swan",
    "dragon": r"dragon( face)?",
    "whale": r"(spouting )?whale|orca",
    "fish": r"fish|tropical fish|blowfish|pisces",
    "spider": r"spider( web)?",
    "elephant": r"elephant|mammoth",
    "flower": r"cherry blossom|white flower|rosette|hibiscus|blossom|sunflower",
    "rose": r"rose|wilted flower",
    "tree": r"(deciduous|leafless) tree",
    "fir": r"(evergreen|christmas) tree",
    "leaf": r"(maple|fallen) leaf",
    "clover": r"shamrock|four leaf clover",
    "nest": r"empty nest|nest with eggs",
    "mushroom": r"(brown )?mushroom",
    # food
    "apple": r"(red|green) apple",
    "citrus": r"lemon|lime",
    "rice": r"(cooked|curry) rice",
    "meat": r"meat on bone|poultry leg",
    "ice cream": r"(soft )?ice cream",
    "cake": r"birthday cake|shortcake",
    "beer": r"beer mug|clinking beer mugs",
    "glass": r"clinking glasses|tumbler glass|(wine|cocktail) glass",
    "cup": r"hot beverage|teacup without handle",
    "straw": r"cup with straw|bubble tea",
    "cutlery": r"fork and knife.*|spoon",
    # places, sky, travel
    "globe": r"globe .*",
    "mountain": r"(snow-capped )?mountain|mount fuji",
    "sunrise": r"sunrise.*|sunset|cityscape.*|bridge at night|night with stars",
    "fog": r"fog(gy)?",
    "house": r"house.*|derelict house",
    "post office": r"(japanese )?post office",
    "hotel": r"(love )?hotel",
    "castle": r".*castle",
    "church": r"church|wedding",
    "tent": r"tent|camping",
    "train": (
        r"locomotive|railway car|high-speed train|bullet train|train|metro|light"
        r" rail|station|tram|monorail|mountain railway|tram car"
    ),
    "bus": r"(oncoming )?bus|trolleybus|minibus",
    "car": r"(oncoming )?(police car|taxi|automobile)|sport utility vehicle",
    "truck": r"(delivery|pickup) truck|articulated lorry",
    "cable car": r"suspension railway|mountain cableway|aerial tramway",
    "airplane": r"(small )?airplane|airplane .*",
    "ship": r"passenger ship|ferry|ship",
    "motor boat": r"speedboat|motor boat",
    "traffic light": r"(horizontal|vertical) traffic light",
    "hourglass": r"hourglass.*",
    "moon": r"crescent moon|full moon face|(last|first) quarter moon face",
    "sun": r"sun|sun with face",
    "star": r"(glowing |shooting )?star|dizzy|sparkles",
    "cloud": r"cloud.*|sun behind .*|.*rain cloud",
    "umbrella": r".*umbrella.*",
    "snowman": r"snowman.*",
    "water drop": r"droplet|sweat droplets|drop of blood",
    # things
    "medal": r".*medal",
    "tickets": r"(admission )?tickets?",
    "ball": r"baseball|softball",
    "football": r"(american|rugby) football",
    "hockey": r"(field|ice) hockey",
    "thread": r"thread|yarn",
    "shoe": r".*(shoe|shoes|boot|sandal)",
    "helmet": r".* helmet",
    "glasses object": r"(sun)?glasses|goggles",
    "shirt": r"t-shirt|running shirt|woman’s clothes",
    "coat": r"(lab )?coat",
    "trousers": r"shorts|briefs",
    "swimsuit": r"one-piece swimsuit|bikini",
    "bag": r"purse|handbag|clutch bag",
    "speaker": r".*speaker.*|loudspeaker|megaphone",
    "bell": r"bell( with slash)?|bellhop bell",
    "musical note": r"musical (notes?|score)",
    "microphone": r"(studio )?microphone",
    "guitar": r"guitar|banjo",
    "trumpet": r"trumpet|trombone|postal horn",
    "drum": r"(long )?drum",
    "phone": r"mobile phone.*|telephone.*|vibration mode",
    "battery": r"(low )?battery",
    "disk": r"(computer|floppy|optical) disk|dvd",
    "camera": r"camera.*",
    "movie camera": r"movie camera|film projector",
    "magnifying glass": r"magnifying glass.*",
    "book": r".*\bbooks?|notebook.*|ledger",
    "page": r"page .*|bookmark tabs|receipt|memo",
    "newspaper": r".*newspaper",
    "banknote": r".*banknote|money with wings",
    "envelope": r"(?!red ).*envelope.*|e-mail|love letter",
    "tray": r"(in|out)box tray",
    "mailbox": r".*mailbox.*|postbox",
    "pen": r"(fountain )?pen|black nib|writing hand",
    "pencil": r"pencil|crayon",
    "folder": r"(open )?file folder",
    "card index": r"card index.*",
    "files": r"card file box|file cabinet",
    "calendar": r".*(calendar|notepad)",
    "chart": r".*chart.*",
    "pushpin": r"(round )?pushpin",
    "paperclip": r".*paperclips?",
    "ruler": r".*ruler",
    "lock": r"(un)?locked.*",
    "key": r"(old )?key",
    "hammer": r"hammer.*|pick",
    "bow": r"bow and arrow|sagittarius",
    "sword": r"dagger|crossed swords",
    "chain": r"link|(broken )?chains?",
    "scales": r"balance scale|libra",
    "bed": r"bed|person in bed",
    "bath": r"person taking bath|bathtub",
    # signs
    "toilet sign": r"(men|women)’s room|restroom|baby symbol|water closet",
    "luggage sign": r"baggage claim|left luggage|customs|passport control",
    "warning or prohibition sign": r"potable water|litter in bin sign",
    "cross": r"(latin|orthodox) cross",
    "six-pointed star": r"star of david|dotted six-pointed star",
    "playback button": (
        r"(repeat|repeat single|play|fast-forward|next track|play or pause|reverse|fast"
        r" reverse|last track|upwards|fast up|"
        r"downwards|fast down|pause|stop|record|eject|shuffle tracks) button"
    ),
    "brightness": r"(dim|bright) button",
    "mathematical sign": r"multiply|plus|minus|divide|heavy equals sign",
    "exclamation mark": r".*(exclamation|question) mark",
    "dollar": r"currency exchange|heavy dollar sign",
    "geometric shape": r"hollow red circle",
    "check mark": r"check .*",
    "cross mark": r"cross mark.*",
    "loop": r"(double )?curly loop",
    "sparkle": r"eight-spoked asterisk|eight-pointed star|sparkle",
    "rights mark": r"copyright|registered|trade mark|circled m",
    "input": r"input .*",
    "blood type": r".*\(blood type\)|p button",
    "japanese button": r"japanese “.*” button",
    "word button": r"(cl|cool|free|id|new|ng|ok|sos|up!|vs) button|information|atm sign",
}

GENDER = r"\b(wo)?m[ae]n\b|\bpersons?\b|\bpeople\b"
VIEW = r": facing right|\boncoming\b"


def base_family(code: str, name: str, topic: str) -> str:
    """The family of an emoji by the rules above: `code` in hexadecimal, its English name, its
    emojibase subgroup.
    """
    if topic in WHOLE_TOPICS:
        return WHOLE_TOPICS[topic]
    if "-" not in code:
        for first, last, family in RANGES:
            if first <= int(code, 16) <= last:
                return family
    return named_family(name)


def named_family(name: str) -> str:
    """The family by rules 3 and 4, from the name alone."""
    for family, pattern in ALIKE.items():
        if re.fullmatch(pattern, name.lower()):
            return family
    return stem(name)


def stem(name: str) -> str:
    """The name without gender and view: what is left is the activity, the role or the animal."""
    plain = re.sub(f"{GENDER}|{VIEW}", " ", name.lower())
    plain = re.sub(r"^(deaf)?\W*$", name.lower(), plain) if not plain.strip() else plain
    return re.sub(r"\s+", " ", re.sub(r"\bface$", "", plain.strip())).strip(" :,") or name.lower()


def merged(families: Mapping[str, str], alike: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """`families` (item to family) with the families of the items in each tuple of `alike` joined;
    the first name in the alphabet stays.
    """
    leader = {family: family for family in families.values()}

    def find(family: str) -> str:
        while leader[family] != family:
            family = leader[family]
        return family

    for items in alike:
        found = sorted({find(families[item]) for item in items})
        for family in found[1:]:
            leader[family] = found[0]
    return {item: find(family) for item, family in families.items()}
