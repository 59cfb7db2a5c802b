/*-------------------------------------------------------------------------
 *
 * redaction_fuzz.c
 *	  Fuzz the search for secrets in messages (src/redact.c).
 *
 * An input is how a secret is planted, and the text around it.  The secret is
 * there as the server would show it: whole or in part, in a part of a message
 * that it can be in.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fuzz.h"
#include "http.h"
#include "storage/pg_shmem.h"
#include "utils/backend_status.h"
#include "utils/elog.h"

/* What redact.c has of other files. */
AkShared   *ak_shared;
char	   *ak_default_prefix = "ak";
bool		ak_redact_log = true;

void
ak_redact_own_statement(bool report_it)
{
}

static const char digits[] =
"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* All but the last are known to the server. */
static const char *const prefixes[] = {
	"ak", "live_2", "Zz_", "_", "p_3456789012345678901234567890_2", "none"
};

#define KNOWN (lengthof(prefixes) - 1)
#define LONGEST 4

typedef enum Manner
{
	WHOLE,
	WHOLE_IN_DETAIL,
	BEGUN,						/* its begin as a literal, known by its prefix */
	DOTS,						/* its begin, then three dots */
	ACTIVITY,					/* its begin, at the end of a line that was cut */
	BYTES,						/* a constant, in the dump of a tree */
	BROKEN,						/* a string there, in several lines */
	NAME,						/* taken for a name: in lower case, and cut */
	JSON,						/* its end, where JSON is wrong */
	MANNERS
} Manner;

/* A text and which of its characters must be masked. */
typedef struct Text
{
	char		text[8192];
	bool		secret[8192];
	int			length;
} Text;

static void
put(Text *text, char c, bool is_secret)
{
	CHECK(text->length < sizeof(text->text) - 1);
	text->text[text->length] = c == '\0' ? ' ' : c;
	text->secret[text->length++] = is_secret;
	text->text[text->length] = '\0';
}

static void
put_string(Text *text, const char *string, int length, bool is_secret)
{
	for (int i = 0; i < length && string[i] != '\0'; i++)
		put(text, string[i], is_secret);
}

static void
put_text(Text *text, const char *string)
{
	put_string(text, string, strlen(string), false);
}

static void
put_input(Text *text, FuzzInput *input, size_t length)
{
	for (; length > 0 && input->size > 0; length--)
		put(text, fuzz_number(input, 1), false);
}

/*
 * The characters of a secret after its last underscore.  Not digits alone:
 * that is a number; mixed, at its begin and its end.
 */
static void
make_tail(FuzzInput *input, char tail[AK_SECRET_TAIL + 1])
{
	for (int i = 0; i < AK_SECRET_TAIL; i++)
		tail[i] = digits[(fuzz_number(input, 1) + i * 7) % 62];
	memcpy(tail + 2, "bX7", 3);
	memcpy(tail + AK_SECRET_TAIL - 4, "Wz1", 3);
	tail[AK_SECRET_TAIL] = '\0';
}

/*
 * A constant as a tree's dump shows it.  A line may end at each space, which
 * is left out then, or before one, or within a number, with the next indented.
 */
static void
put_constant(Text *text, FuzzInput *input, const char *secret)
{
	StringInfoData dump;
	int			every = 1 + fuzz_below(input, 78);
	int			how = fuzz_below(input, 3);
	const char *values;

	initStringInfo(&dump);
	appendStringInfo(&dump, ":constvalue %d [ -76 0 0 0 ", (int) strlen(secret) + 4);
	for (; *secret != '\0'; secret++)
		appendStringInfo(&dump, "%d ", *secret);
	appendStringInfoChar(&dump, ']');
	values = strchr(dump.data, '[');
	for (const char *c = dump.data; *c != '\0'; c++)
	{
		bool		is_byte = c > values && *c >= '0' && *c <= '9';
		bool		breaks = (c - dump.data) % every == every - 1;

		if (how == 0 && breaks && *c == ' ')
			put(text, '\n', false);
		else if (how == 1 && breaks && c > strchr(dump.data, ' '))
		{
			put_text(text, "\n      ");
			put(text, *c, is_byte);
		}
		else
			put(text, *c, is_byte);
	}
}

static void
plant(Text *text, FuzzInput *input, Manner manner)
{
	int			n = fuzz_below(input, manner == BEGUN ? KNOWN : lengthof(prefixes));
	const char *prefix = prefixes[manner == NAME ? LONGEST : n];
	int			part = 6 + fuzz_below(input, AK_SECRET_TAIL - 6);
	char		tail[AK_SECRET_TAIL + 1];

	make_tail(input, tail);
	switch (manner)
	{
		case WHOLE:
		case WHOLE_IN_DETAIL:
			put_text(text, prefix);
			put(text, '_', false);
			put_string(text, tail, AK_SECRET_TAIL, true);
			break;
		case BEGUN:
			put(text, '\'', false);
			put_text(text, prefix);
			put(text, '_', false);
			put_string(text, tail, part, true);
			break;
		case DOTS:
			put_text(text, prefix);
			put(text, '_', false);
			put_string(text, tail, part, true);
			put_text(text, "...");
			break;
		case ACTIVITY:
			{
				int			end;

				put_text(text, "\nProcess 123: ");
				end = text->length + pgstat_track_activity_query_size - 1 -
					fuzz_below(input, 4);	/* characters are not split */
				while (text->length < end - part - 1 - (int) strlen(prefix))
					put(text, ' ', false);
				put_text(text, prefix);
				put(text, '_', false);
				put_string(text, tail, part, true);
				put(text, '\n', false);
				break;
			}
		case BYTES:
			put_constant(text, input, psprintf("%s_%s", prefix, tail));
			break;
		case BROKEN:
			put_text(text, prefix);
			put(text, '_', false);
			for (int i = 0; i < AK_SECRET_TAIL; i++)
			{
				if (i == part)
					put_text(text, fuzz_below(input, 2) ? "\n" : "\n      ");
				put(text, tail[i], true);
			}
			break;
		case NAME:
			put(text, '"', false);
			put_text(text, prefix);
			put(text, '_', false);
			for (int i = 0; i < NAMEDATALEN - 1 - strlen(prefix) - 1; i++)
				put(text, pg_ascii_tolower(tail[i]), true);
			put(text, '"', false);
			break;
		case JSON:
			put_text(text, fuzz_below(input, 2) ?
					 "\nJSON data, line 1: ..." : "\nJSON-Daten, Zeile 1: ...");
			put_string(text, tail + Min(part, AK_SECRET_TAIL - 6), AK_SECRET_TAIL, true);
			break;
		case MANNERS:
			break;
	}
}

static void
emit(Manner manner, char *text)
{
	ErrorData	edata = {.elevel = ERROR,.hide_stmt = true};

	switch (manner)
	{
		case WHOLE:
		case BEGUN:
		case NAME:
		case MANNERS:
			edata.message = text;
			break;
		case WHOLE_IN_DETAIL:
		case ACTIVITY:
		case BYTES:
		case BROKEN:
			edata.detail = text;
			break;
		case DOTS:
		case JSON:
			edata.context = text;
			break;
	}
	emit_log_hook(&edata);
}

static void
learn_prefixes(void)
{
	if (ak_shared != NULL)
		return;
	ak_shared = UsedShmemSegAddr = calloc(1, sizeof(AkShared));
	ak_redact_install();
	for (int i = 1; i < KNOWN; i++)
		ak_redact_learn(prefixes[i], strlen(prefixes[i]));
	ak_redact_learn(prefixes[1], strlen(prefixes[1]));
	CHECK(pg_atomic_read_u32(&ak_shared->nprefixes) == KNOWN - 1);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static Text text;
	FuzzInput	input = {data, Min(size, 4096)};
	Manner		manner = fuzz_below(&input, MANNERS + 1);
	size_t		before = fuzz_number(&input, 2);
	FuzzInput	planted = input;
	char	   *message;
	char	   *once;

	learn_prefixes();
	memset(&text, 0, sizeof(text));
	if (manner == BYTES || manner == BROKEN)
		put_text(&text, fuzz_below(&input, 2) ? "{" : " \n(");
	put_input(&text, &input, input.size > 0 ? before % (input.size + 1) : 0);
	plant(&text, &planted, manner);
	put_input(&text, &input, input.size);

	message = fuzz_string(text.text, text.length);
	emit(manner, message);

	/* Nothing moves, and only what secrets are made of is masked. */
	CHECK(strlen(message) == text.length);
	for (int i = 0; i < text.length; i++)
	{
		CHECK(message[i] == text.text[i] ||
			  (message[i] == 'x' && ak_is_base62(text.text[i])));
		CHECK(message[i] == 'x' || !text.secret[i]);
	}
	if (manner == MANNERS && strchr(text.text, '_') == NULL)
		CHECK(strcmp(message, text.text) == 0);

	/* What was masked stays so. */
	once = pstrdup(message);
	emit(manner, message);
	CHECK(strcmp(once, message) == 0);
	fuzz_end();
	return 0;
}
