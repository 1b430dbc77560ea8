"""Passages about places: timetables, expeditions, measurements, ships."""

from unspoken.channels.data.kinds import Kind, fact, sentences

__all__ = ["TRAVEL"]

TRAINS = Kind(
    "timetables",
    {"line": "name", "hub": "place", "start": "date"},
    {
        "stop": "place",
        "leave": "time",
        "platform": "code",
        "train": "ship",
        "ride": "span",
        "fare": "money",
    },
    (
        fact(
            "The timetable of the {line} Line, valid from {start}, starts at {hub}.|"
            "From {start} on, all services of the {line} Line set out from {hub}.",
            start="From when is the timetable valid?|When does the new schedule begin?",
            hub="Where do services of the {line} Line begin?|"
            "Which station is the origin of the line?",
            line="Which line runs from {hub}?",
        ),
    ),
    (
        fact(
            "The service to {stop} departs at {leave}.|At {leave} one leaves for {stop}.",
            leave="When does one depart for {stop}?|At what time does the {stop} service go?",
            stop="Where does the {leave} departure go?|"
            "What is the destination of the service at {leave}?",
        ),
        fact(
            "For {stop}, go to platform {platform}.|Platform {platform} serves {stop}.",
            platform="From which platform does one travel to {stop}?|"
            "Where do passengers for {stop} board?",
            stop="Which destination is served by platform {platform}?",
        ),
        fact(
            "The train to {stop} is called the {train}.|The {train} runs to {stop}.",
            train="What is the name of the train to {stop}?|Which train would take you to {stop}?",
            stop="Where does the {train} go?",
        ),
        fact(
            "It takes {ride} to reach {stop}.|The journey to {stop} lasts {ride}.",
            ride="How long is the trip to {stop}?|How much time does it take to get to {stop}?",
        ),
        fact(
            "A ticket to {stop} costs {fare}.|{fare} is the fare for {stop}.",
            fare="How much is a ticket to {stop}?|What does one pay to travel to {stop}?",
        ),
    ),
    sentences(
        "Dogs travel free.|The buffet closes at {time}.|"
        "Snow may cause delays.|Complaints go to {person}.|"
        "The bridge was mended on {date}.|Bicycles need a ticket of {money}."
    ),
)

TREK = Kind(
    "expeditions",
    {"peak": "place", "leader": "person", "year": "year"},
    {
        "camp": "name",
        "height": "height",
        "spot": "spot",
        "date": "date",
        "chief": "person",
        "food": "food",
    },
    (
        fact(
            "In {year} {leader} led an expedition to {peak}.|"
            "The {peak} expedition of {year} was the idea of {leader}.",
            leader="Who led the expedition?|Whose idea was the journey to {peak}?",
            year="In which year did they set out for {peak}?|When did the expedition take place?",
            peak="What was the goal of {leader}?|Where did {leader} want to go?",
        ),
    ),
    (
        fact(
            "Camp {camp} stood at a height of {height}.|"
            "They pitched Camp {camp} {height} above the lake.",
            height="How high was Camp {camp}?|What was the altitude of Camp {camp}?",
            camp="Which camp stood at {height}?",
        ),
        fact(
            "The position of Camp {camp} is given as {spot}.|"
            "Camp {camp} was found again at {spot}.",
            spot="What are the coordinates of Camp {camp}?|Where exactly was Camp {camp}?",
        ),
        fact(
            "Camp {camp} was reached on {date}.|On {date} the party came to Camp {camp}.",
            date="When did they arrive at Camp {camp}?|On what day was Camp {camp} reached?",
        ),
        fact(
            "{chief} was in charge of Camp {camp}.|At Camp {camp}, {chief} gave the orders.",
            chief="Who commanded Camp {camp}?|Under whom was Camp {camp}?",
            camp="Which camp was run by {chief}?",
        ),
        fact(
            "At Camp {camp} they lived on {food}.|"
            "The stores of Camp {camp} held nothing but {food}.",
            food="What did they eat at Camp {camp}?|Which food was there at Camp {camp}?",
        ),
    ),
    sentences(
        "The wind never stopped.|A mule was lost near {place}.|"
        "Letters took {span}.|The tents were {colour}.|"
        "Nobody had slept well.|{person} turned back early."
    ),
)

SURVEY = Kind(
    "measurements",
    {"station": "place", "crew": "person", "date": "date"},
    {
        "probe": "code",
        "spot": "spot",
        "depth": "height",
        "temp": "heat",
        "load": "weight",
        "flow": "volume",
    },
    (
        fact(
            "Readings from station {station} were noted by {crew} on {date}.|"
            "On {date} {crew} read the probes at {station}.",
            crew="Who read the probes?|Who noted the readings at {station}?",
            date="When were the readings made?|On which day were the probes read?",
            station="At which station was {crew}?|Where were the readings made?",
        ),
    ),
    (
        fact(
            "Probe {probe} hangs at {spot}.|The place of probe {probe} is {spot}.",
            spot="Where is probe {probe}?|What are the coordinates of {probe}?",
        ),
        fact(
            "Probe {probe} reached a depth of {depth}.|{depth} down is where probe {probe} rests.",
            depth="How deep is probe {probe}?|What depth did {probe} get to?",
            probe="Which probe is {depth} deep?",
        ),
        fact(
            "Probe {probe} showed {temp}.|It was {temp} at probe {probe}.",
            temp="What temperature did {probe} show?|How warm was it at {probe}?",
            probe="Which probe met with {temp}?",
        ),
        fact(
            "The load on probe {probe} was {load}.|Probe {probe} bore {load}.",
            load="What load did {probe} carry?|How much weight was on {probe}?",
        ),
        fact(
            "In an hour, {flow} passed probe {probe}.|Probe {probe} counted {flow} an hour.",
            flow="How much water passed {probe} in an hour?|What was the flow at {probe}?",
        ),
    ),
    sentences(
        "The battery was changed.|A gull sat on the mast.|"
        "The log of {date} is torn.|Clouds came in at {time}.|"
        "Probe {code} was not read.|The boat needs {volume} of fuel."
    ),
)

FLEET = Kind(
    "ships",
    {"port": "place", "master": "person", "year": "year"},
    {
        "ship": "ship",
        "cargo": "food",
        "tons": "weight",
        "to": "place",
        "captain": "person",
        "berth": "code",
    },
    (
        fact(
            "{master} has been harbor master of {port} since {year}.|"
            "The port of {port} has been run by {master} since {year}.",
            master="Who is the harbor master?|Who runs the port of {port}?",
            year="Since when has {master} held the office?|When did {master} take over the port?",
        ),
    ),
    (
        fact(
            "The {ship} carries {cargo}.|The hold of the {ship} is full of {cargo}.",
            cargo="What is the cargo of the {ship}?|What does the {ship} have on board?",
            ship="Which ship is loaded with {cargo}?",
        ),
        fact(
            "She is bound for {to}, the {ship}.|The {ship} sails to {to}.",
            to="Where is the {ship} headed?|What is the destination of the {ship}?",
            ship="Which ship goes to {to}?|On which ship can one get to {to}?",
        ),
        fact(
            "{captain} commands the {ship}.|The {ship} sails under {captain}.",
            captain="Who is the captain of the {ship}?|Under whose command is the {ship}?",
            ship="Which ship does {captain} command?",
        ),
        fact(
            "The {ship} lies at berth {berth}.|Berth {berth} is taken by the {ship}.",
            berth="Where does the {ship} lie?|Which berth was given to the {ship}?",
            ship="What lies at {berth}?|Which ship is moored at {berth}?",
        ),
        fact(
            "The {ship} weighs {tons}.|{tons} is what the {ship} displaces.",
            tons="How heavy is the {ship}?|What is the displacement of the {ship}?",
        ),
    ),
    sentences(
        "The tide turns at {time}.|Fog is expected.|"
        "A crane was mended for {money}.|Sailors sleep ashore.|"
        "The customs officer is {person}.|Last winter the bay froze for {span}."
    ),
)

TRAVEL = (TRAINS, TREK, SURVEY, FLEET)
