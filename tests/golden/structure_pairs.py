"""Writes structure_pairs.jsonl: pairs of texts, and whether the second keeps the structure of the first.

All texts are written for this test. The label follows the paper's examples (reference section 2.3): what matters is the form of what is
kept (paragraphs, list, heading, code, table, JSON, quote, dialogue, verse); dropping clutter is no loss. Part one renders a few subjects in
every form; the two wordings of a subject differ as a rephrasing does. Part two are pages written one by one.
"""
import json, pathlib

HERE = pathlib.Path(__file__).parent
PAIRS = []

def pair(kind, original, rephrased, kept):
    PAIRS.append({"kind": kind, "original": original.strip("\n"), "rephrased": rephrased.strip("\n"), "preserved": bool(kept)})

# ---- part one: subjects in two wordings (a: the page, b: the rephrasing), each a title and some facts (label, text)

SUBJECTS = [
    ("Bread", [("Flour", "Use five hundred grams of strong white flour for one loaf."), ("Water", "Three hundred and twenty millilitres of lukewarm water make a soft dough."),
               ("Yeast", "Seven grams of dried yeast are enough when the dough rests for two hours."), ("Oven", "Bake it at 230 degrees for thirty five minutes on a hot stone.")],
     [("Flour", "A single loaf needs 500 g, that is five hundred grams, of strong white flour."), ("Water", "For a soft dough take three hundred and twenty millilitres of water that is lukewarm."),
      ("Yeast", "If the dough can rest two hours, seven grams of dried yeast will do."), ("Oven", "The loaf bakes on a hot stone for thirty five minutes at 230 degrees.")]),
    ("Lighthouse", [("Built", "The tower was built of granite in 1811 by engineer Robert Keane."), ("Height", "It stands thirty four metres above the reef and leans slightly east."),
                    ("Lamp", "Its first lamp burned whale oil and could be seen for nineteen miles."), ("Today", "Since 1998 the light has run without keepers, on solar power.")],
     [("Built", "Engineer Robert Keane put up the granite tower in 1811."), ("Height", "Thirty four metres tall, it rises above the reef with a slight lean to the east."),
      ("Lamp", "The original lamp was fed with whale oil and was visible nineteen miles away."), ("Today", "No keepers have lived there since 1998; solar power runs the light.")]),
    ("Bicycle service", [("Chain", "Clean the chain with a degreaser before you put on new oil."), ("Brakes", "Replace the brake pads when less than two millimetres are left."),
                         ("Tyres", "Pump road tyres to six bar and check the sidewalls for cracks."), ("Gears", "Turn the barrel adjuster a quarter turn until shifting is quiet.")],
     [("Chain", "Before oiling the chain again, remove the dirt with degreaser."), ("Brakes", "Once fewer than two millimetres remain, fit new brake pads."),
      ("Tyres", "Road tyres need six bar of pressure; look at their sidewalls for cracks too."), ("Gears", "A quarter turn of the barrel adjuster at a time makes the shifting quiet.")]),
    ("Voting", [("Register", "Citizens must register thirty days before the election at the town hall."), ("Identity", "Bring a passport or driving licence to the polling station."),
                ("Hours", "Polling stations open at seven in the morning and close at ten at night."), ("Post", "Postal ballots have to arrive by noon on election day.")],
     [("Register", "Thirty days ahead of the election, every citizen has to register at the town hall."), ("Identity", "At the polling station you will need your driving licence or passport."),
      ("Hours", "You can vote from seven in the morning until polling stations close at ten at night."), ("Post", "Ballots sent by post count only if they arrive by noon on the day of the election.")]),
]
FORMS = {
    "paragraphs": lambda t, f: "\n\n".join(x for _, x in f),
    "one paragraph": lambda t, f: " ".join(x for _, x in f),
    "bullets": lambda t, f: "\n".join("- " + x for _, x in f),
    "numbers": lambda t, f: "\n".join(f"{i}. {x}" for i, (_, x) in enumerate(f, 1)),
    "headings": lambda t, f: f"# {t}\n\n" + "\n\n".join(f"## {l}\n\n{x}" for l, x in f),
    "table": lambda t, f: "| Part | Note |\n|------|------|\n" + "\n".join(f"| {l} | {x} |" for l, x in f),
    "json": lambda t, f: json.dumps({"title": t, "notes": [{"part": l, "note": x} for l, x in f]}, indent=2),
    "labels": lambda t, f: "\n".join(f"{l}: {x}" for l, x in f),
    "quote": lambda t, f: "\n".join("> " + x for _, x in f),
}
CHANGES = [("bullets", "paragraphs"), ("bullets", "one paragraph"), ("numbers", "one paragraph"), ("one paragraph", "bullets"), ("paragraphs", "bullets"),
           ("json", "one paragraph"), ("json", "bullets"), ("table", "paragraphs"), ("table", "bullets"), ("paragraphs", "table"), ("one paragraph", "json"),
           ("headings", "one paragraph"), ("paragraphs", "headings"), ("labels", "one paragraph"), ("quote", "paragraphs")]
for i, (title, a, b) in enumerate(SUBJECTS):
    for j, form in enumerate(FORMS):
        if (i + j) % 2 == 0:
            pair(f"{form} kept", FORMS[form](title, a), FORMS[form](title, b), True)
    for j, (x, y) in enumerate(CHANGES):
        if (i + j) % 2 == 0:
            pair(f"{x} to {y}", FORMS[x](title, a), FORMS[y](title, b), False)

# ---- part two: pages

NAV = "Home | News | Sport | Contact\nLog in\nSubscribe\n\n"
FOOT = "\n\nShare this page\nFacebook\nTwitter\n© 2014 All rights reserved\nPrivacy policy\nTerms of use"
NEWS = """Council approves new bridge
By Anna Hill
March 3, 2012

The city council approved a new bridge over the Tarn river on Monday evening. The vote was eleven to four.

Construction should begin in May and will cost about 12 million euros, the mayor said. Half of it comes from the region.

Residents of the old quarter had asked for a tunnel instead. They now fear more noise."""
NEWS_B = """On Monday evening the city council voted eleven to four in favour of a new bridge across the Tarn river.

According to the mayor, construction will begin in May at a cost of roughly 12 million euros, half of which the region pays.

People living in the old quarter wanted a tunnel rather than a bridge and are now afraid that noise will increase."""
pair("news with clutter", NAV + NEWS + FOOT, NEWS_B, True)
pair("news with title kept", NAV + NEWS + FOOT, "Council approves new bridge\n\n" + NEWS_B, True)
pair("news to bullets", NAV + NEWS + FOOT, "- " + NEWS_B.replace("\n\n", "\n- "), False)
pair("news to headings", NEWS, "# Council approves new bridge\n\n## The vote\n\n" + NEWS_B.replace("\n\nAcc", "\n\n## Cost\n\nAcc").replace("\n\nPeople", "\n\n## Reactions\n\nPeople"), False)
pair("news unchanged", NEWS, NEWS, True)
pair("news, blank lines gone", NEWS, NEWS_B.replace("\n\n", "\n"), True)
pair("nav bullets go", "* Home\n* About us\n* Products\n* Contact\n* Site map\n\n" + NEWS, NEWS_B, True)
pair("nav list at the end goes", NEWS + "\n\nRelated:\n- Ten things about bridges\n- Tarn floods again\n- Mayor to run for third term\n- Weather", NEWS_B, True)

RECIPE = """Grandma's lentil soup
Posted by Mia on October 4
Print this recipe | Save | Email

Ingredients
2 cups red lentils
1 large onion, chopped
3 carrots, sliced
1 tbsp ground cumin
6 cups vegetable stock

Directions
1. Fry the onion and carrots in oil until soft.
2. Stir in the cumin and cook for one minute.
3. Add lentils and stock, then simmer for twenty five minutes.
4. Blend half of the soup and serve with lemon.

12 comments
Jo says: yum!"""
RECIPE_B = """Grandma's lentil soup

Ingredients
2 cups of red lentils
1 large onion, finely chopped
3 sliced carrots
1 tbsp of ground cumin
6 cups vegetable stock

Directions
1. Soften the onion and the carrots in hot oil.
2. Add the cumin, stir, and let it cook for a minute.
3. Pour in the lentils and the stock and simmer for twenty five minutes.
4. Blend one half of the soup and serve it with lemon."""
RECIPE_PROSE = """For grandma's lentil soup you need 2 cups of red lentils, 1 large chopped onion, 3 sliced carrots, 1 tbsp of ground cumin and 6 cups of vegetable stock.

First fry the onion and carrots in oil until they are soft. Then stir in the cumin and cook it for one minute. Add the lentils and the stock and simmer for twenty five minutes. Finally blend half of the soup and serve it with lemon."""
pair("recipe kept", RECIPE, RECIPE_B, True)
pair("recipe to prose", RECIPE, RECIPE_PROSE, False)
pair("recipe, steps to prose", RECIPE, RECIPE_B.split("\n1. ")[0] + "\nSoften the onion and the carrots in hot oil. Add the cumin, stir, and let it cook for a minute. Pour in the lentils and the stock and simmer for twenty five minutes. Blend one half of the soup and serve it with lemon.", False)
pair("recipe, prose to steps", RECIPE_PROSE, RECIPE_B, False)
pair("recipe, comments go", RECIPE + "\nAl says: I used leeks.\nReply", RECIPE_B, True)

CODE = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)

print(mean([1, 2, 3]))"""
HOWTO = "This function adds up all values and divides the total by their number. It fails on an empty list.\n\n"
HOWTO_B = "The function computes the sum of all values and divides that total by the number of them; an empty list makes it fail.\n\n"
pair("bare code kept", CODE, CODE.replace("total", "summed"), True)
pair("bare code to fenced", CODE, "```python\n" + CODE + "\n```", False)
pair("fenced code kept", HOWTO + "```python\n" + CODE + "\n```", HOWTO_B + "```python\n" + CODE + "\n```", True)
pair("fenced code to bare", HOWTO + "```python\n" + CODE + "\n```", HOWTO_B + CODE, False)
pair("code to prose", HOWTO + CODE, HOWTO_B + "The code defines a function called mean that takes values, starts with a total of 0, loops over every value in values, adds it to the total, and returns total divided by len of values. Then it prints the mean of 1, 2 and 3.", False)
pair("indented code kept", HOWTO + "    " + CODE.replace("\n", "\n    "), HOWTO_B + "    " + CODE.replace("\n", "\n    "), True)
pair("code and text kept", HOWTO + CODE, HOWTO_B + CODE, True)
C = """#include <stdio.h>

int main(void) {
    int count = 0;
    while (getchar() != EOF) {
        count++;
    }
    printf("%d\\n", count);
    return 0;
}"""
pair("C kept", C, C.replace("count", "n"), True)
pair("C to fenced", C, "```c\n" + C + "\n```", False)
pair("C to prose", C, "This C program includes stdio.h and counts characters. In main it sets count to 0 and, while getchar does not give EOF, increases count. At the end printf writes count and main returns 0.", False)
SHELL = "To install the tool run these commands:\n\n$ sudo apt-get update\n$ sudo apt-get install build-essential\n$ make && make install\n\nThen log out and in again."
pair("shell kept", SHELL, "Install the tool with the following commands:\n\n$ sudo apt-get update\n$ sudo apt-get install build-essential\n$ make && make install\n\nAfterwards log out and log in again.", True)
pair("shell to prose", SHELL, "To install the tool, first run sudo apt-get update, after that sudo apt-get install build-essential, and finally make && make install. Then log out and in again.", False)
SQL = "SELECT name, count(*) AS n\nFROM visits\nWHERE day >= '2020-01-01'\nGROUP BY name\nORDER BY n DESC;"
pair("sql kept", "The query counts visits:\n\n" + SQL, "This query counts the visits:\n\n" + SQL, True)
pair("sql to prose", "The query counts visits:\n\n" + SQL, "The query selects name and count from visits where the day is at least 2020-01-01, groups by name and orders by n in descending order.", False)
HTML = "<ul>\n  <li><a href=\"/one\">First page</a></li>\n  <li><a href=\"/two\">Second page</a></li>\n</ul>"
pair("html kept", "Use this markup for the menu:\n\n" + HTML, "The menu needs this markup:\n\n" + HTML, True)
pair("html to prose", "Use this markup for the menu:\n\n" + HTML, "For the menu, use an unordered list with one item that links to the first page and another item that links to the second page.", False)

J = '{"name": "Ada", "born": 1815, "field": "mathematics", "works": ["Notes on the engine"]}'
pair("json line kept", J, '{"name": "Ada", "born": 1815, "field": "maths", "works": ["Notes on the analytical engine"]}', True)
pair("json line to prose", J, "Ada was born in 1815 and worked in mathematics. Her works include Notes on the engine.", False)
pair("json to fenced json", J, "```json\n" + J + "\n```", False)
pair("json lines kept", "\n".join('{"id": %d, "title": "Item number %d of the shop"}' % (i, i) for i in range(4)), "\n".join('{"id": %d, "title": "Shop item number %d"}' % (i, i) for i in range(4)), True)
pair("json inside text to prose", "The server answers with this object:\n\n" + json.dumps({"status": "ok", "items": 3, "owner": "alice"}, indent=2) + "\n\nAn error has another status.", "The server answers with an object whose status is ok, whose items are 3 and whose owner is alice. An error has another status.", False)

FORUM = """re: pump makes noise
joined: May 2009
posts: 214

> My pump makes a grinding noise after two minutes.
> Should I replace the bearing?

Yes, it is the bearing. Take off the rear cover, there are four bolts, and pull it with a puller.

Mine lasted ten years after that."""
pair("forum quote kept", FORUM, "> After two minutes my pump makes a grinding noise.\n> Should the bearing be replaced?\n\nYes, the bearing is the cause. Remove the rear cover, which has four bolts, and use a puller to pull it.\n\nMine ran for ten more years afterwards.", True)
pair("forum quote dropped", FORUM, "Yes, the bearing is the cause. Remove the rear cover, which has four bolts, and use a puller to pull it.\n\nMine ran for ten more years afterwards.", True)
INTERVIEW = """Interviewer: When did you start to paint?
Lopez: I was nine, and my aunt gave me her old brushes.
Interviewer: Did you study it?
Lopez: Never. I worked in a bank for twenty years and painted at night.
Interviewer: What changed?
Lopez: A gallery owner saw a picture of the harbour in a café and called me."""
pair("interview kept", INTERVIEW, INTERVIEW.replace("When did you start to paint?", "When did you begin painting?").replace("I was nine, and my aunt gave me her old brushes.", "At nine, when my aunt gave me her old brushes."), True)
pair("interview to prose", INTERVIEW, "Lopez started to paint at nine, when her aunt gave her some old brushes. She never studied it. She worked in a bank for twenty years and painted at night. That changed when a gallery owner saw a picture of the harbour in a café and called her.", False)
QA = """Q: How long does delivery take?
A: Orders within the country arrive in three working days.

Q: Can I return a jacket?
A: Yes, within thirty days if the label is still on.

Q: Do you ship abroad?
A: We ship to Norway and Switzerland only."""
pair("questions kept", NAV + QA, QA.replace("arrive in three working days", "take three working days to arrive").replace("Can I return a jacket?", "May I send a jacket back, that is return it?"), True)
pair("questions to prose", QA, "Orders within the country arrive in three working days. A jacket can be returned within thirty days if the label is still on. The shop ships abroad to Norway and Switzerland only.", False)
POEM = """The tide comes in on quiet feet
and folds the sand in silver sheets,
the gulls have gone, the boats are in,
the lamps along the pier begin

to tremble where the water sings
of rope and rust and smaller things;
a child looks up, a window glows,
and where the wind goes no one knows."""
pair("verse kept", POEM, POEM.replace("quiet feet", "gentle feet").replace("silver sheets", "silver pleats"), True)
pair("verse to prose", POEM, "The tide comes in on quiet feet and folds the sand in silver sheets. The gulls have gone and the boats are in, and the lamps along the pier begin to tremble where the water sings of rope and rust and smaller things. A child looks up, a window glows, and no one knows where the wind goes.", False)

SPECS = """Acme K200 kettle
Add to cart
Free shipping over $50

Capacity: 1.7 litres
Power: 2200 W
Weight: 1.1 kg
Cable length: 75 cm
Material: stainless steel
Warranty: 2 years

Customers also bought
Acme toaster T90"""
pair("specs kept", SPECS, "Acme K200 kettle\n\nCapacity: 1.7 litres\nPower: 2200 W\nWeight: 1.1 kg\nLength of cable: 75 cm\nMaterial: stainless steel\nWarranty: two years, 2 in all", True)
pair("specs to prose", SPECS, "The Acme K200 kettle has a capacity of 1.7 litres and a power of 2200 W. Its weight is 1.1 kg, the cable length is 75 cm, the material is stainless steel and the warranty lasts 2 years.", False)
pair("specs to table", SPECS, "| Property | Value |\n|---|---|\n| Capacity | 1.7 litres |\n| Power | 2200 W |\n| Weight | 1.1 kg |\n| Cable length | 75 cm |\n| Material | stainless steel |\n| Warranty | 2 years |", False)
TSV = "Year\tWinner\tScore\n1998\tFrance\t3-0\n2002\tBrazil\t2-0\n2006\tItaly\t5-3\n2010\tSpain\t1-0"
pair("tab table kept", "World cup finals\n\n" + TSV, TSV, True)
pair("tab table to prose", "World cup finals\n\n" + TSV, "France were the winner in 1998 with the score 3-0. Brazil won in 2002 with 2-0. Italy won in 2006 with the score 5-3, and Spain in 2010 with 1-0.", False)
pair("pipe nav is no table", "Home | Shop | Blog | Contact\nLogin | Register | Cart | Help\n\n" + NEWS, NEWS_B, True)

README = """# Tarn tools

Small programs for river data.

## Install

Run the installer from the release page and restart the shell.

## Usage

Give the station number and the day; the program writes the water level.

## Licence

MIT"""
pair("readme kept", README, README.replace("Small programs for river data.", "A set of small programs that work with river data.").replace("Run the installer", "Start the installer"), True)
pair("readme to plain", README, "Tarn tools are small programs for river data. To install them, run the installer from the release page and restart the shell. To use them, give the station number and the day; the program writes the water level. The licence is MIT.", False)
pair("readme headings flattened", README, README.replace("# ", "").replace("#", ""), False)
pair("title heading dropped", "# The tide table\n\n" + NEWS_B, NEWS, True)

MIXED = """Why we moved to the coast

We had lived in the city for twelve years when the rent went up again. The flat was dark, and the children shared one small room.

What we miss:
* the night bus that stopped at the door
* our neighbour Pilar and her terrible opera records
* good bread on a Sunday

On the other hand the air is clean and the school has eleven pupils per class. My wife found work at the harbour office within a month."""
MIXED_B = """Twelve years into our city life the rent rose once more. Our flat was dark and the children had to share a small room.

Things we miss:
* the night bus with its stop at our door
* Pilar, our neighbour, and her terrible opera records
* decent bread, good on a Sunday

Then again the air here is clean, and each school class has only eleven pupils. Within a month my wife had found work at the harbour office."""
pair("list inside prose kept", NAV + MIXED + FOOT, MIXED_B, True)
pair("list inside prose lost", NAV + MIXED + FOOT, MIXED_B.replace("Things we miss:\n* the", "We miss the").replace("\n* Pilar", ", Pilar").replace("\n* decent", ", and decent").replace("Sunday\n", "Sunday.\n"), False)
pair("everything becomes a list", MIXED, "\n".join("- " + s for s in MIXED_B.replace("* ", "").replace("\n", " ").split(". ")), False)
pair("bullet sign changes", MIXED, MIXED_B.replace("* ", "- "), True)
pair("list shortened", "\n".join("- " + x for x in ["Pack warm socks and a rain jacket for the hike.", "Click here to see our sponsor.", "Take two litres of water per person.", "Tell the hut keeper when you leave in the morning.", "Like us on social media.", "Turn back when the clouds reach the ridge."]),
     "- Bring warm socks and a jacket against rain for the hike.\n- Each person should take two litres of water.\n- Let the hut keeper know when you leave in the morning.\n- If clouds reach the ridge, turn back.", True)
PARTS = ["The mill was first named in a letter of 1342, when the abbey sold it to a miller from the next valley.", "A flood took the wheel in 1610 and for a whole generation nobody ground corn there.",
         "Under the Weber family the mill got its stone house and a second wheel for sawing timber.", "The railway brought cheap flour from the plain and the last sack was filled in 1911.",
         "After the war a potter rented the ground floor and painted the doors blue.", "Today the house holds a small museum which opens on the first Sunday of each month."]
PARTS_B = ["A letter from 1342 names the mill for the first time: the abbey sold it to a miller of the neighbouring valley.", "The flood of 1610 carried off the wheel, and nobody ground corn there for a whole generation.",
           "The Weber family gave the mill a stone house and a second wheel, which was used for sawing timber.", "When cheap flour came from the plain by railway, the mill stopped; its last sack was filled in 1911.",
           "A potter rented the ground floor after the war and painted its doors blue.", "Now a small museum is in the house, open on the first Sunday of every month."]
pair("six paragraphs kept", "\n\n".join(PARTS), "\n\n".join(PARTS_B), True)
pair("six paragraphs to one", "\n\n".join(PARTS), " ".join(PARTS_B), False)
pair("one paragraph to six", " ".join(PARTS), "\n\n".join(PARTS_B), False)
pair("two paragraphs merged", "\n\n".join(PARTS), "\n\n".join([PARTS_B[0] + " " + PARTS_B[1]] + PARTS_B[2:]), True)
pair("hard-wrapped lines joined", "\n\n".join("\n".join(p[i:j] for i, j in [(0, p.find(" ", 60)), (p.find(" ", 60) + 1, len(p))]) for p in PARTS), "\n\n".join(PARTS_B), True)
pair("paragraph halves dropped", NAV + "\n\n".join(PARTS) + FOOT, "\n\n".join(PARTS_B[:4]), True)
GLOSSARY = "Glossary of sailing terms\n\nBow\nThe front end of a boat, pointed so that it cuts the waves.\n\nKeel\nThe long beam along the bottom that keeps a boat from drifting sideways.\n\nTack\nTo turn the bow through the wind so that it blows on the other side."
pair("glossary kept", GLOSSARY, "Bow\nA boat's front end, with a point that cuts through waves.\n\nKeel\nA long beam along the bottom; it stops the boat from drifting sideways.\n\nTack\nTurning the bow through the wind until the wind blows on the other side.", True)
pair("glossary to bullets", GLOSSARY, "- **Bow**: A boat's front end, with a point that cuts through waves.\n- **Keel**: A long beam along the bottom; it stops the boat from drifting sideways.\n- **Tack**: Turning the bow through the wind until the wind blows on the other side.", False)
LETTER = "Dear Mr Okafor,\n\nThank you for your letter of 9 June about the broken street lamp in Mill Lane.\n\nOur contractor will replace the lamp next week. Until then a mobile light stands at the corner.\n\nYours sincerely,\nHelen Marsh\nStreet department"
pair("letter kept", LETTER, "Dear Mr Okafor,\n\nMany thanks for your letter dated 9 June on the broken street lamp in Mill Lane.\n\nNext week our contractor is going to replace it. A mobile light will stand at the corner until then.\n\nYours sincerely,\nHelen Marsh\nStreet department", True)
pair("letter to report", LETTER, "Helen Marsh of the street department thanks Mr Okafor for his letter of 9 June about the broken street lamp in Mill Lane. Their contractor will replace the lamp next week, and until then a mobile light stands at the corner.", True)
PROG = "Programme\n\n9:00 Registration and coffee in the foyer\n9:30 Opening words by the dean\n10:00 Lecture on river ecology, hall B\n12:30 Lunch on the terrace\n14:00 Workshops in small groups\n17:00 Closing and farewell"
pair("programme kept", PROG, "Programme\n\n9:00 Coffee and registration in the foyer\n9:30 The dean's opening words\n10:00 River ecology lecture in hall B\n12:30 Lunch out on the terrace\n14:00 Small groups: workshops\n17:00 Farewell and closing", True)
pair("programme to prose", PROG, "The day starts at 9:00 with registration and coffee in the foyer, and the dean speaks opening words at 9:30. At 10:00 there is a lecture on river ecology in hall B. Lunch on the terrace is at 12:30, workshops in small groups at 14:00, and the closing and farewell at 17:00.", False)
pair("programme to bullets", PROG, "Programme\n\n- 9:00 Registration and coffee in the foyer\n- 9:30 Opening words by the dean\n- 10:00 Lecture on river ecology, hall B\n- 12:30 Lunch on the terrace\n- 14:00 Workshops in small groups\n- 17:00 Closing and farewell", False)
REVIEWS = "Reviews for Hotel Mira\n4.5 out of 5\nWrite a review\n\nThe room was clean and the staff at the desk helped us find a doctor late at night.\nHelpful? Yes (3) No (0)\nReport\n\nBreakfast was poor, with cold eggs and no fruit, but the view of the bay made up for it.\nHelpful? Yes (1) No (2)\nReport\n\nNext page\n1 2 3 4"
pair("reviews cleaned", REVIEWS, "The staff at the desk helped us find a doctor late at night, and the room was clean.\n\nBreakfast was poor: the eggs were cold and there was no fruit. The view of the bay made up for that.", True)
pair("reviews to list", REVIEWS, "* The staff at the desk helped us find a doctor late at night, and the room was clean.\n* Breakfast was poor: the eggs were cold and there was no fruit. The view of the bay made up for that.", False)
pair("empty answer", NEWS, "", False)
pair("both empty", "", "", True)
pair("one line", "The shop is closed on Mondays and on public holidays.", "On Mondays and public holidays the shop is closed.", True)
pair("one line to heading", "The shop is closed on Mondays and on public holidays.", "# Opening hours\n\n- Closed on Mondays\n- Closed on public holidays", False)
pair("dash dialogue kept", "— Where is the captain? asked the boy.\n— Below deck, said the cook, asleep as always.\n— Then wake him, the mast is cracking!\n\nThe cook put down his knife and ran.", "— Where has the captain gone? the boy asked.\n— He is below deck, the cook said, asleep as always.\n— Wake him then, the mast is cracking!\n\nThe cook dropped his knife and ran.", True)
pair("bold added", NEWS, NEWS_B.replace("Monday evening", "**Monday evening**").replace("12 million euros", "**12 million euros**"), True)
pair("numbers to bullets", FORMS["numbers"]("", SUBJECTS[2][1]), FORMS["bullets"]("", SUBJECTS[2][2]), True)
pair("nested list kept", "- Tools for the garden\n  - a spade with a long handle\n  - two pairs of thick gloves\n- Plants for the shady side\n  - three ferns from the nursery\n  - wild garlic bulbs", "- Garden tools\n  - spade with long handle\n  - thick gloves, two pairs\n- Plants for the side that is shady\n  - three nursery ferns\n  - bulbs of wild garlic", True)
pair("nested list to prose", "- Tools for the garden\n  - a spade with a long handle\n  - two pairs of thick gloves\n- Plants for the shady side\n  - three ferns from the nursery\n  - wild garlic bulbs", "The tools for the garden are a spade with a long handle and two pairs of thick gloves. The plants for the shady side are three ferns from the nursery and wild garlic bulbs.", False)
pair("formula text kept", "Let x be the width of the field. Then the area is x * (x + 20), and the fence costs 4 * x + 40 euros.\n\nSet the area to 800 and solve: x = 20 fits.", "Call the width of the field x. The area then equals x * (x + 20) and the cost of the fence is 4 * x + 40 euros.\n\nWith an area of 800, solving gives x = 20.", True)

assert len(PAIRS) >= 120, len(PAIRS)
(HERE / "structure_pairs.jsonl").write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in PAIRS))
print(len(PAIRS), "pairs,", sum(p["preserved"] for p in PAIRS), "kept")
