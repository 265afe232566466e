"""Words, names and places that samples are made of. Data only."""


def _each(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _each(
    "apple arm arrow autumn baby bag ball banana band bank barn basket bath beach bear bed bee bell bench berry "
    "bird blanket blue boat bone book boot bottle bowl box boy branch bread brick bridge broom brother brown brush "
    "bucket bus butter button cabin cake calm camel camp candle car card carpet carrot castle cat chair cheese "
    "cherry chest child circle city clay clever clock cloud coat coffee coin cold color comb cook copper corn "
    "cotton cow crane cross crown cup curtain dance dark day deep deer desert desk dinner dish dog doll donkey door "
    "dragon dream dress drum duck dust eagle ear early earth east egg elbow elephant empty engine evening eye face "
    "fall family fan farm fast father feather fence field finger fire fish flag flat floor flower fog food foot "
    "forest fork fox free fresh friend frog fruit full game garden gate ghost giant girl glass glove goat gold good "
    "goose grape grass gray green ground guitar hair hammer hand happy harbor hat hawk hay heart heavy hello hen "
    "hill honey horn horse hot house ice idea ink iron island jacket jar jelly jewel juice jump key kind king "
    "kitchen kite kitten knee knife ladder lake lamb lamp land large leaf lemon letter light lily lion list lizard "
    "long lunch magic mango map marble market meadow meal melon metal milk mint mirror monkey moon morning moss "
    "mother mountain mouse mouth music nail narrow neck needle nest net new night noise north nose note number nut "
    "oak ocean olive onion open orange otter oven owl paint pan panda paper park path peach pear pen pencil pepper "
    "piano picture pie pig pillow pine pink pipe pizza plane plant plate plum pocket pond pony pool poor potato "
    "pumpkin puppy purple quick quiet quilt rabbit radio rain red rice rich ring river road robin robot rock roof "
    "room root rope rose round rug ruler sad sail salt sand school sea seed shark sheep shelf shell ship shirt shoe "
    "shop short silver sister sky sleep slow small smoke snail snake snow soap sock soft sofa song soup south "
    "spider spoon spring square squirrel stable star steam stick stone storm stove straw street string strong sugar "
    "summer sun swan sweet table tail tall tea teacher tent thunder tiger tin toast tomato tooth tower town toy "
    "train tray tree triangle truck trumpet tulip tunnel turtle umbrella uncle valley velvet village violin wagon "
    "wall walnut warm water wave west whale wheat wheel whistle white wild wind window wing winter wolf wood wool "
    "world worm yard year yellow yes young zebra image shape object left right above below two three"
)
"""Simple nouns and adjectives."""

NAMES = _each(
    "Ann Ben Carla David Emma Frank Grace Henry Ida Jack Kate Liam Mia Noah Olga Paul Quinn Rosa Sam Tina Uma "
    "Victor Wendy Xena Yara Zoe Adam Bella Carlos Diana Eric Fiona George Hanna Ivan Julia Karl Laura Marco Nina "
    "Oscar Petra Robert Sara Tom Ursula Vera Walter Alice Bruno Clara Daniel Elena Felix Gina Hugo Iris Jonas Kira "
    "Leo Maria Nora Otto Pia Ralf Sofia Theo Anna Peter Lisa Max Lena Mark Eva John Mary James Linda Omar Aisha "
    "Ravi Priya Chen Yuki Kofi Amara Diego Lucia"
)

CITIES = _each(
    "Oslo Rome Paris Berlin Madrid London Tokyo Cairo Lima Athens Vienna Dublin Lisbon Prague Warsaw Helsinki "
    "Stockholm Boston Chicago Denver Austin Seattle Dallas Miami Toronto Sydney Mumbai Delhi Beijing Seoul Bangkok "
    "Hanoi Nairobi Lagos Accra Dakar Tunis Bogota Quito Havana Geneva Milan Naples Munich Hamburg Lyon Porto Bergen "
    "Krakow Zurich"
)

COLORS = _each("red green blue yellow orange purple pink brown black white gray teal")

ANIMALS = _each("fox rabbit bear cat dog mouse frog turtle duck horse lion wolf deer hen goat pig pony squirrel")

FOODS = _each("pizza soup rice bread cheese pasta cake salad curry fish apples honey noodles pie beans")

JOBS = _each("teacher baker doctor farmer pilot nurse painter cook singer writer driver tailor judge sailor")

ONSETS = _each("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t tr v w y z")
VOWELS = _each("a a e e i i o o u ai ea ee oa ou")
"""What invented words are made of; some are there twice, to be drawn more often."""
