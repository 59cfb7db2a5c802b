/*-------------------------------------------------------------------------
 *
 * permissions_fuzz.c
 *	  Fuzz the parser of permissions (src/expression.c) with libFuzzer.
 *
 * An input is what is held, one permission a line, then an empty line, then
 * the expression; without an empty line, all of it is the expression.  Each
 * answer is compared with that of a second parser, written differently: it
 * descends recursively, and asks for a wildcard's grant segment by segment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "expression.h"
#include "fuzz.h"

#define HELD_MAX 16

/* ----- the second parser ----- */

typedef struct Reader
{
	const char *at;
	const char *end;
	const AkHeld *held;
	int			depth;
	bool		failed;
} Reader;

static bool read_expression(Reader *reader);

static bool
is_word(char c)
{
	return c != '\0' &&
		strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			   "0123456789_:-.*", c) != NULL;
}

static int
word_length(const char *at, const char *end)
{
	int			length = 0;

	while (at + length < end && is_word(at[length]))
		length++;
	return length;
}

static void
skip_space(Reader *reader)
{
	while (reader->at < reader->end && *reader->at != '\0' &&
		   strchr(" \t\n\v\f\r", *reader->at) != NULL)
		reader->at++;
}

/* Whether the text at hand is an operator; goes past it if it is. */
static bool
skip(Reader *reader, const char *word, char sign)
{
	int			length;

	skip_space(reader);
	if (reader->at < reader->end && *reader->at == sign)
	{
		reader->at++;
		return true;
	}
	length = word_length(reader->at, reader->end);
	if (length == 0 || length != (int) strlen(word))
		return false;
	for (int i = 0; i < length; i++)
		if (reader->at[i] != word[i] && reader->at[i] != word[i] - 'a' + 'A')
			return false;
	reader->at += length;
	return true;
}

/* The length of the segment that begins a name. */
static int
segment_length(const char *name, int length)
{
	const char *period = memchr(name, '.', length);

	return period ? period - name : length;
}

static bool
reference_grants(const char *held, int held_length, const char *name,
				 int length)
{
	for (;;)
	{
		int			h = segment_length(held, held_length);
		int			n = segment_length(name, length);

		if (h == held_length && h == 1 && held[0] == '*')
			return true;
		if (h != n || memcmp(held, name, n) != 0)
			return false;
		if (h == held_length || n == length)
			return h == held_length && n == length;
		held += h + 1;
		held_length -= h + 1;
		name += n + 1;
		length -= n + 1;
	}
}

static bool
is_valid_name(const char *name, int length)
{
	for (int i = 0; i < length; i++)
		if (name[i] == '*' ||
			(name[i] == '.' && (i == 0 || i == length - 1 || name[i - 1] == '.')))
			return false;
	return length > 0;
}

static bool
read_factor(Reader *reader)
{
	bool		value = false;
	int			length;

	if (reader->failed)
		return false;
	if (skip(reader, "not", '!'))
		return !read_factor(reader);
	if (skip(reader, "", '('))
	{
		if (++reader->depth > AK_NESTING_MAX)
			reader->failed = true;
		else
			value = read_expression(reader);
		reader->depth--;
		if (!reader->failed && !skip(reader, "", ')'))
			reader->failed = true;
		return value;
	}
	length = word_length(reader->at, reader->end);
	if (!is_valid_name(reader->at, length))
		reader->failed = true;
	else
	{
		Reader		word = *reader;

		if (skip(&word, "and", '&') || skip(&word, "or", '|'))
			reader->failed = true;
		for (int i = 0; i < reader->held->count; i++)
			if (reference_grants(reader->held->permissions[i].name,
								 reader->held->permissions[i].length,
								 reader->at, length))
				value = true;
	}
	reader->at += length;
	return value;
}

static bool
read_term(Reader *reader)
{
	bool		value = read_factor(reader);

	while (!reader->failed && skip(reader, "and", '&'))
		value &= read_factor(reader);
	return value;
}

static bool
read_expression(Reader *reader)
{
	bool		value = read_term(reader);

	while (!reader->failed && skip(reader, "or", '|'))
		value |= read_term(reader);
	return value;
}

/* ----- the comparison ----- */

static void
compare(const char *text, int length, const AkHeld *held)
{
	Reader		reader = {.at = text,.end = text + length,.held = held};
	bool		expected = read_expression(&reader);
	bool		valid;
	bool		holds = false;
	int			offset = -1;
	AkFault		fault;

	skip_space(&reader);
	valid = !reader.failed && reader.at == reader.end;

	fault = ak_expression_evaluate(text, length, held, &holds, &offset);
	CHECK((fault == AK_NO_FAULT) == valid);
	CHECK(fault >= AK_NO_FAULT && fault < AK_FAULT_WILDCARD_PLACE);
	CHECK(offset >= 0 && offset <= length);
	if (valid)
		CHECK(holds == expected);
	else
	{
		const AkHeld nothing = {0};
		const AkHeld all = {.permissions = &(AkPermission) {"*", 1},.count = 1};
		int			again;

		/* All before a fault is ASCII: see report_expression(). */
		for (int i = 0; i < offset; i++)
			CHECK((unsigned char) text[i] < 0x80);
		/* A fault does not depend on what is held. */
		CHECK(ak_expression_evaluate(text, length, &nothing, &holds, &again) == fault);
		CHECK(again == offset);
		CHECK(ak_expression_evaluate(text, length, &all, &holds, &again) == fault);
		CHECK(again == offset);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *) data;
	int			length = size;
	AkPermission permissions[HELD_MAX];
	AkHeld		held = {.permissions = permissions};
	char	   *expression;
	int			begin = 0;

	/* What is held ends at an empty line, if there is one. */
	for (int i = 0; i + 1 < length; i++)
		if (text[i] == '\n' && text[i + 1] == '\n')
		{
			for (int end = 0; end <= i; end++)
				if (text[end] == '\n' && held.count < HELD_MAX)
				{
					AkPermission *permission = &permissions[held.count++];
					int			offset = -1;
					AkFault		fault;

					permission->length = end - begin;
					permission->name = fuzz_copy(text + begin, end - begin);
					begin = end + 1;

					fault = ak_permission_check(permission->name,
												permission->length, &offset);
					CHECK(fault == AK_NO_FAULT || fault >= AK_FAULT_CHARACTER);
					CHECK(fault == AK_NO_FAULT ||
						  (offset >= 0 && offset <= permission->length));

					/* What can be held and has no wildcard can be asked for. */
					if (fault == AK_NO_FAULT &&
						memchr(permission->name, '*', permission->length) == NULL)
					{
						AkHeld		itself = {.permissions = permission,.count = 1};
						bool		holds = false;

						CHECK(ak_expression_evaluate(permission->name,
													 permission->length,
													 &itself, &holds,
													 &offset) == AK_NO_FAULT);
						CHECK(holds);
					}
				}
			begin = i + 2;
			break;
		}

	expression = fuzz_copy(text + begin, length - begin);
	compare(expression, length - begin, &held);
	fuzz_end();
	return 0;
}
