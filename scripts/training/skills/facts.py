"""A small table of facts, asked for in several ways. What is held out is a way of asking, never a fact."""

from training.draw import Draw
from training.sample import Sample, ask

_CAPITALS = (
    "France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Austria Vienna|Greece Athens|"
    "Ireland Dublin|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Poland Warsaw|"
    "Hungary Budapest|Russia Moscow|Ukraine Kyiv|Turkey Ankara|Egypt Cairo|Kenya Nairobi|Nigeria Abuja|"
    "Ghana Accra|Morocco Rabat|Japan Tokyo|China Beijing|India Delhi|Thailand Bangkok|Vietnam Hanoi|"
    "Nepal Kathmandu|Iran Tehran|Iraq Baghdad|Canada Ottawa|Cuba Havana|Peru Lima|Chile Santiago|"
    "Brazil Brasilia|Colombia Bogota|Australia Canberra|Belgium Brussels|Iceland Reykjavik"
)
_OTHER = (
    ("colour of the sky", "What color is the sky?", "The sky is blue."),
    ("colour of grass", "What color is grass?", "Grass is green."),
    ("colour of snow", "What color is snow?", "Snow is white."),
    ("colour of a lemon", "What color is a lemon?", "A lemon is yellow."),
    ("colour of coal", "What color is coal?", "Coal is black."),
    ("days in a week", "How many days are in a week?", "A week has 7 days."),
    ("months in a year", "How many months are in a year?", "A year has 12 months."),
    ("hours in a day", "How many hours are in a day?", "A day has 24 hours."),
    ("minutes in an hour", "How many minutes are in an hour?", "An hour has 60 minutes."),
    ("seconds in a minute", "How many seconds are in a minute?", "A minute has 60 seconds."),
    ("legs of a spider", "How many legs does a spider have?", "A spider has 8 legs."),
    ("legs of a dog", "How many legs does a dog have?", "A dog has 4 legs."),
    ("legs of a bee", "How many legs does a bee have?", "A bee has 6 legs."),
    ("sides of a triangle", "How many sides does a triangle have?", "A triangle has 3 sides."),
    ("sides of a square", "How many sides does a square have?", "A square has 4 sides."),
    ("young of a dog", "What is a young dog called?", "A young dog is called a puppy."),
    ("young of a cat", "What is a young cat called?", "A young cat is called a kitten."),
    ("young of a cow", "What is a young cow called?", "A young cow is called a calf."),
    ("young of a sheep", "What is a young sheep called?", "A young sheep is called a lamb."),
    ("largest planet", "What is the largest planet?", "The largest planet is Jupiter."),
    ("planet of people", "Which planet do we live on?", "We live on the planet Earth."),
    ("red planet", "Which planet is called the red planet?", "Mars is called the red planet."),
    ("largest ocean", "What is the largest ocean?", "The largest ocean is the Pacific."),
    ("longest river", "What is the longest river in Africa?", "The longest river in Africa is the Nile."),
    ("highest mountain", "What is the highest mountain?", "The highest mountain is Mount Everest."),
    ("largest animal", "What is the largest animal?", "The largest animal is the blue whale."),
    ("fastest animal", "What is the fastest land animal?", "The fastest land animal is the cheetah."),
    ("tallest animal", "What is the tallest animal?", "The tallest animal is the giraffe."),
    ("sign of water", "What is the formula of water?", "The formula of water is H2O."),
    ("sign of gold", "What is the symbol of gold?", "The symbol of gold is Au."),
    ("sign of iron", "What is the symbol of iron?", "The symbol of iron is Fe."),
    ("sign of oxygen", "What is the symbol of oxygen?", "The symbol of oxygen is O."),
    ("water boils", "At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("water freezes", "At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("bees make", "What do bees make?", "Bees make honey."),
    ("cows give", "What do cows give?", "Cows give milk."),
    ("hens lay", "What do hens lay?", "Hens lay eggs."),
    ("day after Monday", "Which day comes after Monday?", "Tuesday comes after Monday."),
    ("day after Friday", "Which day comes after Friday?", "Saturday comes after Friday."),
    ("month after March", "Which month comes after March?", "April comes after March."),
    ("first month", "What is the first month of the year?", "The first month of the year is January."),
    ("last month", "What is the last month of the year?", "The last month of the year is December."),
    ("opposite of hot", "What is the opposite of hot?", "The opposite of hot is cold."),
    ("opposite of big", "What is the opposite of big?", "The opposite of big is small."),
    ("opposite of up", "What is the opposite of up?", "The opposite of up is down."),
    ("opposite of day", "What is the opposite of day?", "The opposite of day is night."),
    ("opposite of left", "What is the opposite of left?", "The opposite of left is right."),
    ("opposite of old", "What is the opposite of old?", "The opposite of old is new."),
    ("mix of blue and yellow", "Which color do blue and yellow make?", "Blue and yellow make green."),
    ("mix of red and white", "Which color do red and white make?", "Red and white make pink."),
    ("who wrote Hamlet", "Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("who painted the Mona Lisa", "Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
)
_CAPITAL = (
    "What is the capital of {}?",
    "what is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital of {}.",
    "Capital of {}?",
    "What's the capital of {}?",
    "Do you know the capital of {}?",
    "What is the capital city of {}?",
    "capital of {}",
)
_COUNTRY = (
    "{} is the capital of which country?",
    "Which country has the capital {}?",
    "Of which country is {} the capital?",
)
_MANNERS = (
    "{}",
    "{}",
    "{}",
    "Hi! {}",
    "Hello, {lower}",
    "Please tell me: {}",
    "A question: {}",
    "Quick question: {lower}",
    "{} Please answer.",
    "I have a question. {}",
    "{lower}",
    "Tell me: {lower}",
)


def polite(source: Draw, question: str) -> str:
    """Return the question with or without some words around it."""
    return source.pick(_MANNERS).format(question, lower=question[0].lower() + question[1:])


def sample(source: Draw) -> Sample:
    """Draw a capital, the country of a capital, or another fact; now and then as mere text, outside any chat."""
    if source.chance(0.6):
        country, capital = source.pick(_CAPITALS.split("|")).split()
        if source.chance(0.25):
            question, answer = source.pick(_COUNTRY).format(capital), f"{capital} is the capital of {country}."
        else:
            question, answer = source.pick(_CAPITAL).format(country), f"The capital of {country} is {capital}."
    else:
        _, question, answer = source.pick(_OTHER)
    question = polite(source, question)
    if source.chance(0.06):
        return Sample(skill="facts", key=f"text {question}", raw=answer)
    return ask("facts", question, question, answer)
