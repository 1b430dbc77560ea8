"""Passages about things: stores, substances, recipes, codes, auctions."""

from unspoken.channels.data.kinds import Kind, fact, sentences

__all__ = ["THINGS"]

STORE = Kind(
    "inventories",
    {"store": "place", "clerk": "person", "date": "date"},
    {"item": "thing", "count": "count", "colour": "colour", "shelf": "code", "price": "money"},
    (
        fact(
            "{clerk} counted the stock at {store} on {date}.|"
            "The {store} warehouse was gone through on {date} by {clerk}.",
            clerk="Who took stock at {store}?|Which clerk did the counting?",
            date="When was the stock counted?|On what date did the count at {store} take place?",
        ),
    ),
    (
        fact(
            "There are {count} pieces of the {item}.|Of the {item}, {count} are left.",
            count="How many of the {item} are in stock?|What quantity of the {item} remains?",
        ),
        fact(
            "The {item} comes in {colour}.|Every {item} has been painted {colour}.",
            colour="What colour is the {item}?|In which shade does the {item} come?",
            item="Which article is {colour}?",
        ),
        fact(
            "The {item} lies in bay {shelf}.|Look in bay {shelf} for the {item}.",
            shelf="Where is the {item} stored?|In which bay would one look for the {item}?",
            item="What is kept in bay {shelf}?|Which article fills bay {shelf}?",
        ),
        fact(
            "A {item} sells for {price}.|The price of one {item} is {price}.",
            price="What does a {item} cost?|How much is asked for a {item}?",
            item="Which article costs {price}?|What can be had for {price}?",
        ),
    ),
    sentences(
        "The roof leaks over the door.|{count} nails were not counted.|"
        "Two cats live here.|An order by {person} is late.|"
        "The old {thing} was sold long ago.|Doors shut at {time}."
    ),
)

CHEMISTRY = Kind(
    "invented chemistry",
    {"lab": "firm", "head": "person", "year": "year"},
    {
        "stuff": "substance",
        "melts": "heat",
        "colour": "colour",
        "from_": "substance",
        "found": "person",
        "use": "thing",
    },
    (
        fact(
            "At {lab}, {head} has studied new compounds since {year}.|"
            "The laboratory of {head} at {lab} opened in {year}.",
            head="Who leads the work at {lab}?|Whose laboratory is it?",
            lab="Where does {head} work?|Which institution does {head} belong to?",
            year="How long has {head} been at it, by the first year?|"
            "From which year on did {head} work there?",
        ),
    ),
    (
        fact(
            "The compound {stuff} melts at {melts}.|At {melts}, {stuff} turns liquid.",
            melts="What is the melting point of {stuff}?|How hot must {stuff} be to melt?",
            stuff="Which substance becomes liquid at {melts}?",
        ),
        fact(
            "In crystals, {stuff} is {colour}.|Crystals of {stuff} look {colour}.",
            colour="What colour are the crystals of {stuff}?|How does {stuff} look?",
            stuff="Which crystals are {colour}?",
        ),
        fact(
            "Chemists make {stuff} from {from_}.|When {from_} is heated, {stuff} is left behind.",
            from_="What is {stuff} made from?|Which substance yields {stuff}?",
            stuff="What is obtained from {from_}?|What does {from_} turn into?",
        ),
        fact(
            "{found} was the first to isolate {stuff}.|"
            "The discovery of {stuff} is owed to {found}.",
            found="Who discovered {stuff}?|To whom do we owe {stuff}?",
            stuff="What did {found} discover?|Which compound goes back to {found}?",
        ),
        fact(
            "The main use of {stuff} is to coat a {use}.|One can polish a {use} with {stuff}.",
            use="For what object is {stuff} used?|What is {stuff} put on?",
        ),
    ),
    sentences(
        "Gloves are a must.|The fume hood was built in {year}.|"
        "A sample of {weight} was spilled.|None of it smells.|"
        "Patent {code} has lapsed.|The balance drifts a little."
    ),
)

RECIPE = Kind(
    "recipes",
    {"dish": "name", "cook": "person", "town": "place"},
    {
        "food": "food",
        "amount": "weight",
        "time": "span",
        "heat": "heat",
        "swap": "food",
        "shop": "firm",
    },
    (
        fact(
            "{dish} is a dish from {town}; this is how {cook} makes it.|"
            "{cook} learned to cook {dish} in {town}.",
            town="Where does {dish} come from?|Which town is known for {dish}?",
            cook="Whose recipe is this?|Who knows how to make {dish}?",
            dish="What is the dish called?|What does {cook} prepare?",
        ),
    ),
    (
        fact(
            "Take {amount} of {food}.|You will need {food}, {amount} of it.",
            amount="How much {food} is needed?|What amount of {food} goes in?",
            food="Of which ingredient does one take {amount}?",
        ),
        fact(
            "Let the {food} stand for {time}.|The {food} needs {time} before it is done.",
            time="How long does the {food} take?|For how long should one wait for the {food}?",
        ),
        fact(
            "Heat the {food} to {heat}.|The oven for the {food} should be at {heat}.",
            heat="At what temperature is the {food} cooked?|How hot should it be for the {food}?",
            food="What is brought to {heat}?",
        ),
        fact(
            "If there is no {food}, use {swap}.|Some cooks replace the {food} with {swap}.",
            swap="What can stand in for the {food}?|Which substitute is there for the {food}?",
            food="What can {swap} replace?",
        ),
        fact(
            "The best {food} is sold by {shop}.|Buy the {food} at {shop}.",
            shop="Where should one buy the {food}?|Who sells the best {food}?",
            food="What is {shop} known for?|What does one get at {shop}?",
        ),
    ),
    sentences(
        "Stir it now and then.|Salt comes last.|"
        "An older version, of {year}, used lard.|Serve it warm.|"
        "The pot should be {colour}, some say.|It feeds a family, and {person} too."
    ),
)

ACCESS = Kind(
    "codes and passwords",
    {"site": "firm", "guard": "person", "until": "date"},
    {
        "room": "name",
        "pin": "count",
        "word": "password",
        "id": "uuid",
        "owner": "person",
        "key": "colour",
    },
    (
        fact(
            "These codes of {site} hold until {until}; ask {guard} for new ones.|"
            "{guard} set the codes of {site}, good until {until}.",
            until="Until when are the codes valid?|When do the codes run out?",
            guard="Who hands out new codes?|Whom does one ask about codes at {site}?",
        ),
    ),
    (
        fact(
            "The password of server {room} is {word}.|To log in to server {room}, type {word}.",
            word="What is the password for server {room}?|How does one log in to server {room}?",
            room="Which server has the password {word}?",
        ),
        fact(
            "Server {room} is registered as {id}.|The identifier of server {room} is {id}.",
            id="What is the identifier of server {room}?|As what is server {room} registered?",
            room="Which server goes by {id}?",
        ),
        fact(
            "The door to server {room} opens with {pin}.|Dial {pin} at the door of server {room}.",
            pin="What is the door code for server {room}?|"
            "Which digits open the door of server {room}?",
        ),
        fact(
            "Server {room} belongs to {owner}.|{owner} is the owner of server {room}.",
            owner="Who owns server {room}?|Whose server is {room}?",
            room="Which server is in the hands of {owner}?",
        ),
        fact(
            "The key card for server {room} is {key}.|"
            "A {key} card unlocks the rack of server {room}.",
            key="What colour is the card for server {room}?|"
            "Which card unlocks the rack of server {room}?",
        ),
    ),
    sentences(
        "Do not write them on the wall.|The code {code} was withdrawn.|The backup runs at {time}.|"
        "The alarm was tested on {date}.|"
        "{person} no longer has access.|Coffee is not allowed inside."
    ),
)

AUCTION = Kind(
    "auctions",
    {"house": "firm", "town": "place", "date": "date"},
    {
        "lot": "code",
        "item": "thing",
        "price": "money",
        "buyer": "person",
        "maker": "person",
        "made": "year",
    },
    (
        fact(
            "{house} held its sale at {town} on {date}.|"
            "The sale of {house} in {town} began on {date}.",
            town="Where did {house} sell?|In which town was the sale?",
            date="When was the sale?|On what date did {house} hold its auction?",
            house="Which house held the sale?|Who ran the auction in {town}?",
        ),
    ),
    (
        fact(
            "Lot {lot} was a {item}.|Under lot {lot} a {item} came up.",
            item="What was sold as lot {lot}?|Which object was lot {lot}?",
            lot="What was the lot number of the {item}?|Under which number did the {item} come up?",
        ),
        fact(
            "The {item} went for {price}.|Bidding for the {item} stopped at {price}.",
            price="What did the {item} fetch?|How much was paid for the {item}?",
            item="What was sold for {price}?",
        ),
        fact(
            "{buyer} carried the {item} home.|The {item} was bought by {buyer}.",
            buyer="Who bought the {item}?|Who is the new owner of the {item}?",
            item="What did {buyer} buy?|Which object went to {buyer}?",
        ),
        fact(
            "The {item} is the work of {maker}.|{maker} made the {item}.",
            maker="Who made the {item}?|From whose hands is the {item}?",
            item="What did {maker} make?",
        ),
        fact(
            "The {item} dates from {made}.|It was in {made} that the {item} was made.",
            made="How old is the {item}, by its year?|When was the {item} made?",
        ),
    ),
    sentences(
        "Bids came by telephone too.|A {thing} found no buyer.|"
        "The room was cold.|An estimate of {money} proved wrong.|"
        "{person} only looked on.|Lunch was at {time}."
    ),
)

THINGS = (STORE, CHEMISTRY, RECIPE, ACCESS, AUCTION)
