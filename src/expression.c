/*-------------------------------------------------------------------------
 *
 * expression.c
 *	  Boolean expressions over permissions: a parser that evaluates.
 *
 *	  expression := term { OR term }
 *	  term		 := factor { AND factor }
 *	  factor	 := { NOT } ( permission | "(" expression ")" )
 *	  permission := segment { "." segment }
 *	  segment	 := one or more of [A-Za-z0-9_:-]
 *
 * AND, OR and NOT may be written in any case, or as & | and !.  What is held
 * may have "*" as its last segment: "documents.*" grants "documents.read" and
 * "documents.read.own", though not "documents"; "*" grants everything.
 *
 * Nothing here allocates, recurses, raises an error or calls into PostgreSQL:
 * test/fuzz/permissions_fuzz.c compiles this file by itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "expression.h"

typedef enum Token
{
	TOKEN_END,
	TOKEN_PERMISSION,
	TOKEN_AND,
	TOKEN_OR,
	TOKEN_NOT,
	TOKEN_OPEN,
	TOKEN_CLOSE,
	TOKEN_UNKNOWN
} Token;

typedef struct Scanner
{
	const char *text;
	int			length;
	int			begin;			/* of the token, and what follows its end */
	int			end;
} Scanner;

/* What is known of an expression in the middle of it, at one nesting. */
typedef struct Level
{
	int			opened;			/* offset of its parenthesis */
	bool		any;			/* of the terms before the current one */
	bool		all;			/* of the current term's factors */
	bool		negated;		/* the next factor is */
} Level;

static bool
is_segment_character(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') || c == '_' || c == ':' || c == '-';
}

/* The operator that a word is, or TOKEN_PERMISSION. */
static Token
word_token(const char *word, int length)
{
	static const struct
	{
		const char *lower;
		int			length;
		Token		token;
	}			operators[] = {
		{"and", 3, TOKEN_AND}, {"or", 2, TOKEN_OR}, {"not", 3, TOKEN_NOT}
	};

	for (int i = 0; i < 3; i++)
	{
		int			same = 0;

		if (length != operators[i].length)
			continue;
		/* Only a letter becomes a lower-case one by this bit. */
		while (same < length &&
			   (word[same] | 0x20) == operators[i].lower[same])
			same++;
		if (same == length)
			return operators[i].token;
	}
	return TOKEN_PERMISSION;
}

static Token
next_token(Scanner *scanner)
{
	const char *text = scanner->text;
	int			end = scanner->end;

	while (end < scanner->length &&
		   (text[end] == ' ' || (text[end] >= '\t' && text[end] <= '\r')))
		end++;
	scanner->begin = end;
	if (end == scanner->length)
	{
		scanner->end = end;
		return TOKEN_END;
	}

	while (end < scanner->length &&
		   (is_segment_character(text[end]) ||
			text[end] == '.' || text[end] == '*'))
		end++;
	if (end > scanner->begin)
	{
		scanner->end = end;
		return word_token(text + scanner->begin, end - scanner->begin);
	}

	scanner->end = end + 1;
	switch (text[end])
	{
		case '&':
			return TOKEN_AND;
		case '|':
			return TOKEN_OR;
		case '!':
			return TOKEN_NOT;
		case '(':
			return TOKEN_OPEN;
		case ')':
			return TOKEN_CLOSE;
		default:
			return TOKEN_UNKNOWN;
	}
}

/*
 * Check the segments of a name.  *offset is set to where the fault is.
 */
static AkFault
check_segments(const char *name, int length, bool is_held, int *offset)
{
	int			begin = 0;
	int			end;

	for (;; begin = end + 1)
	{
		for (end = begin; end < length && is_segment_character(name[end]);)
			end++;
		if (end < length && name[end] == '*')
		{
			if (is_held && end == begin && end == length - 1)
				return AK_NO_FAULT;
			*offset = end;
			return is_held ? AK_FAULT_WILDCARD_PLACE : AK_FAULT_WILDCARD_ASKED;
		}
		*offset = end;
		if (end < length && name[end] != '.')
			return AK_FAULT_CHARACTER;
		if (end == begin)
			return AK_FAULT_SEGMENT;
		if (end == length)
			return AK_NO_FAULT;
	}
}

/* Whether a permission that is held grants the one asked for. */
static bool
grants(const AkPermission *held, const char *name, int length)
{
	int			prefix = held->length - 1;

	/* What is asked for has no "*", so a misplaced one grants nothing. */
	if (prefix >= 0 && held->name[prefix] == '*' &&
		(prefix == 0 || held->name[prefix - 1] == '.'))
		return length > prefix && memcmp(held->name, name, prefix) == 0;
	return length == held->length && memcmp(held->name, name, length) == 0;
}

static bool
is_granted(const AkHeld *held, const char *name, int length)
{
	for (int i = 0; i < held->count; i++)
		if (grants(&held->permissions[i], name, length))
			return true;
	return false;
}

static void
begin_level(Level *level, int opened)
{
	level->opened = opened;
	level->any = false;
	level->all = true;
	level->negated = false;
}

static void
take_factor(Level *level, bool value)
{
	level->all = level->all && value != level->negated;
	level->negated = false;
}

/*
 * Parse an expression and say whether it holds for what is held.  With a
 * fault, *offset is the byte where it is, and *holds is not set.
 *
 * All of it is parsed, whatever its first part decides: whether there is a
 * fault does not depend on what is held.
 */
AkFault
ak_expression_evaluate(const char *text, int length, const AkHeld *held,
					   bool *holds, int *offset)
{
	Level		levels[AK_NESTING_MAX + 1];
	Level	   *level = levels;
	Scanner		scanner = {.text = text,.length = length};
	bool		is_empty = true;
	bool		wants_factor = true;	/* else AND, OR or an end */

	begin_level(level, 0);
	for (;; is_empty = false)
	{
		Token		token = next_token(&scanner);
		const char *word = text + scanner.begin;
		int			word_length = scanner.end - scanner.begin;

		*offset = scanner.begin;
		switch (token)
		{
			case TOKEN_PERMISSION:
				{
					AkFault		fault;
					int			within;

					if (!wants_factor)
						return AK_FAULT_OPERATOR;
					fault = check_segments(word, word_length, false, &within);
					if (fault != AK_NO_FAULT)
					{
						*offset += within;
						return fault;
					}
					take_factor(level, is_granted(held, word, word_length));
					wants_factor = false;
					break;
				}
			case TOKEN_NOT:
				if (!wants_factor)
					return AK_FAULT_OPERATOR;
				level->negated = !level->negated;
				break;
			case TOKEN_OPEN:
				if (!wants_factor)
					return AK_FAULT_OPERATOR;
				if (level == &levels[AK_NESTING_MAX])
					return AK_FAULT_NESTING;
				begin_level(++level, scanner.begin);
				break;
			case TOKEN_AND:
				if (wants_factor)
					return AK_FAULT_OPERAND;
				wants_factor = true;
				break;
			case TOKEN_OR:
				if (wants_factor)
					return AK_FAULT_OPERAND;
				wants_factor = true;
				level->any = level->any || level->all;
				level->all = true;
				break;
			case TOKEN_CLOSE:
				if (level == levels)
					return AK_FAULT_NOT_OPENED;
				if (wants_factor)
					return AK_FAULT_OPERAND;
				level--;
				take_factor(level, level[1].any || level[1].all);
				break;
			case TOKEN_END:
				if (is_empty)
				{
					*offset = 0;
					return AK_FAULT_EMPTY;
				}
				if (wants_factor)
					return AK_FAULT_END;
				if (level != levels)
				{
					*offset = level->opened;
					return AK_FAULT_NOT_CLOSED;
				}
				*holds = level->any || level->all;
				return AK_NO_FAULT;
			case TOKEN_UNKNOWN:
				return AK_FAULT_CHARACTER;
		}
	}
}

/*
 * Whether a permission can be held: its form, with a wildcard as the last
 * segment or without.  With a fault, *offset is the byte where it is.
 */
AkFault
ak_permission_check(const char *name, int length, int *offset)
{
	*offset = 0;
	if (word_token(name, length) != TOKEN_PERMISSION)
		return AK_FAULT_RESERVED;
	return check_segments(name, length, true, offset);
}
