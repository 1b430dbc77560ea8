"""Passages about people: work, letters, courts, matches, loans, history."""

from unspoken.channels.data.kinds import Kind, fact, sentences

__all__ = ["PEOPLE"]

STAFF = Kind(
    "people and jobs",
    {"org": "firm", "town": "place", "year": "year"},
    {
        "who": "person",
        "job": "job",
        "since": "year",
        "home": "place",
        "pay": "money",
        "desk": "code",
    },
    (
        fact(
            "{org} has kept its head office in {town} since {year}.|"
            "Since {year}, {org} has run its affairs from {town}.",
            town="Which town is home to {org}?|Where would you find the main office of {org}?",
            year="When did {org} settle in {town}?|"
            "How far back does the {town} office of {org} go?",
        ),
        fact(
            "The staff list of {org}, a house founded in {year} at {town}, was drawn up again this spring.",
            year="In what year did {org} come into being?|"
            "How old is {org}, going by its founding year?",
        ),
    ),
    (
        fact(
            "{who} is employed there as a {job}.|"
            "The post of {job} belongs to {who}.|{who} earns a living as a {job}.",
            job="What does {who} do for a living?|"
            "Which post does {who} hold?|What is the occupation of {who}?",
            who="Who is the {job}?|Which person on the staff is a {job}?",
        ),
        fact(
            "{who} joined in {since}.|It was in {since} that {who} was taken on.|"
            "The first contract of {who} dates from {since}.",
            since="When did {who} start?|In which year was {who} hired?|"
            "Since when has {who} been on the payroll?",
        ),
        fact(
            "{who} grew up in {home}.|{home} is the birthplace of {who}.|"
            "{who} moved here from {home}.",
            home="Where does {who} come from?|What is the home town of {who}?",
            who="Who has roots in {home}?|Which employee is originally from {home}?",
        ),
        fact(
            "Each month {who} is paid {pay}.|The books put the wages of {who} at {pay}.",
            pay="How much does {who} earn?|What is the salary of {who}?",
            who="Whose wages come to {pay}?",
        ),
        fact(
            "{who} sits at desk {desk}.|Desk {desk} was given to {who}.",
            desk="Which desk is used by {who}?|At what desk can {who} be found?",
            who="Who uses {desk}?",
        ),
    ),
    sentences(
        "Nobody minds the stairs.|A visitor, {person}, left on {date} without signing the book.|"
        "The canteen serves {food} on Fridays.|"
        "Most of them cycle to work.|The lift was last inspected on {date}."
    ),
)

COURT = Kind(
    "court records",
    {"court": "place", "judge": "person", "date": "date"},
    {
        "who": "person",
        "deed": "thing",
        "fine": "money",
        "term": "span",
        "case": "code",
        "lawyer": "person",
    },
    (
        fact(
            "The court of {court} sat on {date} under Judge {judge}.|"
            "On {date} Judge {judge} opened the session at {court}.",
            judge="Who presided over the sitting at {court}?|Which judge heard the cases?",
            date="When did the court sit?|On what date was the session held?",
            court="In which town did Judge {judge} hold court?|Where was the sitting?",
        ),
    ),
    (
        fact(
            "{who} was charged with taking a {deed}.|"
            "The charge against {who} was the theft of a {deed}.",
            deed="What was {who} said to have stolen?|"
            "Which object did {who} stand accused of taking?",
            who="Who was tried over the {deed}?|The missing {deed} was blamed on whom?",
        ),
        fact(
            "A fine of {fine} was laid on {who}.|{who} had to pay {fine} to the treasury.",
            fine="How much was {who} fined?|What sum did the court demand of {who}?",
            who="Which of the accused owed {fine}?",
        ),
        fact(
            "{who} was sentenced to {term} of labour.|The sentence for {who} was {term}.",
            term="How long was the sentence of {who}?|For how long was {who} put away?",
        ),
        fact(
            "The papers on {who} are filed under {case}.|File {case} holds the case of {who}.",
            case="Under what number is the case of {who} kept?|Which file concerns {who}?",
            who="Whose case bears the number {case}?",
        ),
        fact(
            "{lawyer} spoke for {who}.|{who} was defended by {lawyer}.",
            lawyer="Who represented {who}?|Which lawyer took the side of {who}?",
            who="Whom did {lawyer} defend?|Who was the client of {lawyer}?",
        ),
    ),
    sentences(
        "Three witnesses failed to appear.|The clerk noted rain at {time}.|The gallery was full.|"
        "A petition from {person} was set aside.|Costs of {money} were waived in an older matter."
    ),
)

SPORT = Kind(
    "sports results",
    {"cup": "name", "host": "place", "year": "year"},
    {
        "home": "team",
        "away": "team",
        "score": "score",
        "star": "person",
        "crowd": "count",
        "coach": "person",
    },
    (
        fact(
            "The {cup} Cup of {year} was played in {host}.|"
            "In {year} it was {host} that staged the {cup} Cup.",
            host="Where was the {cup} Cup held?|Which town hosted the tournament?",
            year="In which year did {host} stage the {cup} Cup?|When was this tournament played?",
        ),
    ),
    (
        fact(
            "The {home} beat the {away} {score}.|"
            "It ended {score} between the {home} and the {away}.",
            score="What was the result of the {home} against the {away}?|"
            "How did the match of the {home} end?",
            away="Whom did the {home} face?|Which side met the {home}?",
        ),
        fact(
            "{star} was the best player of the {home}.|For the {home}, {star} decided the game.",
            star="Who stood out for the {home}?|Which player made the difference for the {home}?",
            home="For which team did {star} shine?",
        ),
        fact(
            "{crowd} people watched the {home}.|The match of the {home} drew a crowd of {crowd}.",
            crowd="How many spectators saw the {home}?|"
            "What was the attendance when the {home} played?",
        ),
        fact(
            "The {away} are trained by {coach}.|"
            "{coach} has been in charge of the {away} all season.",
            coach="Who is the coach of the {away}?|Under whom do the {away} train?",
            away="Which team does {coach} look after?|Whose coach is {coach}?",
        ),
    ),
    sentences(
        "The pitch was wet.|A later match was called off at {time}.|The trophy weighs {weight}.|"
        "Tickets cost {money} at the gate.|No one was sent off.|{person} sang before the final."
    ),
)

MAILS = Kind(
    "email threads",
    {"topic": "title", "boss": "person", "day": "date"},
    {
        "who": "person",
        "mail": "mail",
        "wish": "thing",
        "call": "phone",
        "hour": "time",
        "file": "code",
    },
    (
        fact(
            "Subject: {topic}\nDear all, {boss} wants everything settled by {day}.|"
            "Re: {topic}\nHello, as {boss} said, the deadline is {day}.",
            day="What is the deadline?|By when must everything be settled?",
            boss="Who set the deadline?|Who is pressing for {day}?",
            topic="What is the subject of the thread?|Which title heads the mails?",
        ),
    ),
    (
        fact(
            "{who} wrote from {mail}.|The address of {who} is now {mail}.",
            mail="What is the email address of {who}?|From which address does {who} write?",
            who="Who can be reached at {mail}?",
        ),
        fact(
            "{who} asks for a {wish}.|Please send a {wish} to {who}.",
            wish="What does {who} want?|Which item is meant for {who}?",
            who="Who needs a {wish}?|For whom is the {wish}?",
        ),
        fact(
            "You can ring {who} on {call}.|{who}'s new number is {call}.",
            call="What is the phone number of {who}?|Which number reaches {who}?",
            who="Whose telephone is {call}?",
        ),
        fact(
            "{who} is free at {hour}.|At {hour}, {who} will dial in.",
            hour="At what time can {who} talk?|When is {who} available?",
        ),
        fact(
            "{who} attached the file {file}.|Attachment {file} comes from {who}.",
            file="Which attachment did {who} send?|What is the name of the file from {who}?",
            who="Who sent {file}?|From whom did {file} come?",
        ),
    ),
    sentences(
        "Thanks for your patience!|I am on the train, sorry for typos.|"
        "The old list of {date} no longer counts.|"
        "Please do not print this.|{person} is on leave until {date}.|"
        "The room holds {count} chairs at most."
    ),
)

HISTORY = Kind(
    "invented history",
    {"realm": "place", "era": "year", "river": "name"},
    {
        "who": "person",
        "deed": "place",
        "year": "year",
        "heir": "person",
        "army": "count",
        "seat": "place",
    },
    (
        fact(
            "The realm of {realm} arose in {era} on the banks of the {river}.|"
            "Along the river {river}, the lords of {realm} made their league in {era}.",
            era="When did {realm} begin?|In what year was the realm founded?",
            river="On which river did {realm} lie?|What was the name of the river?",
        ),
    ),
    (
        fact(
            "{who} took the fortress of {deed} in {year}.|"
            "In {year} the walls of {deed} fell to {who}.",
            deed="Which fortress did {who} capture?|What stronghold was won by {who}?",
            year="When did {deed} fall?|In which year was {deed} conquered?",
            who="Who conquered {deed}?|To whom did {deed} surrender?",
        ),
        fact(
            "{heir} followed {who} on the throne.|After {who}, the crown passed to {heir}.",
            heir="Who succeeded {who}?|Who ruled next after {who}?",
            who="Who ruled before {heir}?|Whose successor was {heir}?",
        ),
        fact(
            "{who} raised an army of {army}.|{army} soldiers marched under {who}.",
            army="How many soldiers did {who} command?|What was the strength of the army of {who}?",
        ),
        fact(
            "{who} held court at {seat}.|The capital under {who} was {seat}.",
            seat="Where did {who} reside?|From which city did {who} rule?",
            who="Which ruler lived in {seat}?|Who made {seat} the capital?",
        ),
    ),
    sentences(
        "The chronicles disagree on much else.|"
        "A plague is mentioned under {year}.|Salt was dear in those years.|"
        "The monk {person} copied the annals.|"
        "Taxes of {money} were common.|Few of the walls still stand."
    ),
)

LIBRARY = Kind(
    "library loans",
    {"hall": "place", "keeper": "person", "count": "count"},
    {
        "who": "person",
        "book": "title",
        "due": "date",
        "shelf": "code",
        "author": "person",
        "fee": "money",
    },
    (
        fact(
            "{keeper} looks after the {count} volumes of the {hall} library.|"
            "The reading room at {hall}, with {count} volumes, is in the care of {keeper}.",
            keeper="Who is the librarian at {hall}?|Who takes care of the collection?",
            count="How many volumes are there at {hall}?|What is the size of the collection?",
        ),
    ),
    (
        fact(
            "{who} borrowed {book}.|{book} went home with {who}.",
            book="Which book was lent to {who}?|What is {who} reading?",
            who="Who has {book} on loan?|Who took out {book}?",
        ),
        fact(
            "{who} must return it by {due}.|The loan to {who} ends on {due}.",
            due="When is the loan of {who} due?|By what date should {who} bring the book back?",
        ),
        fact(
            "{book} belongs on shelf {shelf}.|Shelf {shelf} is the place for {book}.",
            shelf="Where is {book} kept?|On which shelf does {book} stand?",
            book="What is found on {shelf}?|Which title has its place at {shelf}?",
        ),
        fact(
            "{book} was written by {author}.|{author} is the author of {book}.",
            author="Who wrote {book}?|From whose pen is {book}?",
            book="What did {author} write?|Which work is by {author}?",
        ),
        fact(
            "{who} still owes {fee}.|A fee of {fee} is open for {who}.",
            fee="How much does {who} owe?|What is the debt of {who} to the library?",
            who="Who is in debt by {fee}?",
        ),
    ),
    sentences(
        "The heating is off in June.|A copy of {title} was lost on {date}.|"
        "Whispering is allowed upstairs.|"
        "New shelves arrive at {time}.|Children read for free.|{person} gave the globe."
    ),
)

PEOPLE = (STAFF, COURT, SPORT, MAILS, HISTORY, LIBRARY)
