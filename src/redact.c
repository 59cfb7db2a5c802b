/*-------------------------------------------------------------------------
 *
 * redact.c
 *	  Find secrets in texts, and keep them out of the server log.
 *
 * A caller may put a secret into a statement as a literal, and the statement
 * into the log by an error or by log_statement.  What looks like a secret is
 * masked in place before a message is written, all of it but its prefix.  No
 * memory is allocated and nothing is raised here.
 *
 * A secret that was cut or mistyped has not its form any more.  So what is
 * masked of a word, after an underscore in it, is a run of base62 characters
 *
 *	  - as long as a secret's, or nearly and mixed as only chance mixes them,
 *	  - after a prefix that keys of this server have: five or more, though not
 *		a lower-case word, as names of tables have, unless it is quoted,
 *	  - where a text was cut, by the server itself: any number.
 *
 * Where a secret was taken for a name, it is in lower case, and cut as names
 * are.
 *
 * The text of the statement is masked as well.  It has been parsed by then, or
 * failed to: only messages are still made of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/pg_shmem.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/elog.h"

#include "http.h"

/* Of a text, how it can have been made. */
#define CUT_BY_DOTS 1			/* where it was cut it ends in "..." */
#define CUT_AS_ACTIVITY 2		/* so is a long line, without a sign of it */
#define BROKEN_LINES 4			/* words go on in the next line */

/* Fewer characters than a secret's, but more than names have at random. */
#define NEARLY_SECRET 20

static emit_log_hook_type prev_emit_log = NULL;

/* A run of base62 characters, with what breaks its line. */
typedef struct Run
{
	char	   *start;
	char	   *end;			/* first character after it */
	int			length;			/* characters, as are the next three */
	int			upper;
	int			lower;
	int			digits;
} Run;

static void
read_run(char *text, int how, Run *run)
{
	char	   *c = text;

	memset(run, 0, sizeof(Run));
	run->start = text;
	for (;;)
	{
		for (; ak_is_base62(*c); c++)
		{
			run->length++;
			if (*c >= 'a')
				run->lower++;
			else if (*c >= 'A')
				run->upper++;
			else
				run->digits++;
		}
		run->end = c;
		if (!(how & BROKEN_LINES) || *c != '\n')
			return;
		while (*c == '\n' || *c == ' ')
			c++;
		if (!ak_is_base62(*c))
			return;
	}
}

/* Whether anything had to be masked. */
static bool
mask(const Run *run)
{
	bool		changed = false;

	for (char *c = run->start; c < run->end; c++)
		if (ak_is_base62(*c) && *c != AK_MASK)
		{
			*c = AK_MASK;
			changed = true;
		}
	return changed;
}

/*
 * Whether keys have this prefix: those of this server as far as it knows them,
 * see ak_redact_learn().
 */
static bool
is_known_prefix(const char *prefix, int length)
{
	uint32		n;

	if (ak_default_prefix != NULL &&
		strlen(ak_default_prefix) == length &&
		pg_strncasecmp(ak_default_prefix, prefix, length) == 0)
		return true;
	if (ak_shared == NULL || UsedShmemSegAddr == NULL)
		return false;			/* not there yet, or the log's own process */
	n = pg_atomic_read_u32(&ak_shared->nprefixes);
	pg_read_barrier();
	for (uint32 i = 0; i < n; i++)
		if (strlen(ak_shared->prefixes[i]) == length &&
			pg_strncasecmp(ak_shared->prefixes[i], prefix, length) == 0)
			return true;
	return false;
}

/* Whether a part of a secret follows the underscore of its prefix. */
static bool
follows_known_prefix(const char *text, const char *underscore, const Run *run)
{
	const char *word = underscore;

	if (run->length <= AK_START_RANDOM)
		return false;			/* no more than apikeys.keys shows */
	while (word > text && underscore - word <= AK_PREFIX_MAX &&
		   (ak_is_base62(word[-1]) || word[-1] == '_'))
		word--;
	return (run->lower < run->length || (word > text && word[-1] == '\'')) &&
		is_known_prefix(word, underscore - word);
}

/* Whether the run ends a name that has been cut to the length of names. */
static bool
is_cut_name(const char *text, const Run *run)
{
	const char *name = run->start;

	if (run->length < NAMEDATALEN - 1 - (AK_PREFIX_MAX + 1))
		return false;			/* the longest prefix leaves more of a secret */
	while (name > text && run->end - name < NAMEDATALEN &&
		   (ak_is_base62(name[-1]) || name[-1] == '_'))
		name--;
	return run->end - name == NAMEDATALEN - 1;
}

/* Whether the text was cut behind the run, which ends its line then. */
static bool
is_cut(const char *text, const Run *run, int how)
{
	const char *line = run->start;

	if ((how & CUT_BY_DOTS) && strncmp(run->end, "...", 3) == 0)
		return true;
	if (!(how & CUT_AS_ACTIVITY) || (*run->end != '\0' && *run->end != '\n'))
		return false;
	while (line > text && line[-1] != '\n')
		line--;

	/* The postmaster has a buffer of 1024 bytes; characters are not split. */
	return run->end - line >= Min(pgstat_track_activity_query_size, 1024) - 4;
}

static bool
redact(char *text, int how)
{
	char	   *underscore = text ? strchr(text, '_') : NULL;
	bool		changed = false;

	while (underscore != NULL)
	{
		Run			run;
		bool		is_secret;

		read_run(underscore + 1, how, &run);
		if (run.length == 0 || run.digits == run.length)
			is_secret = run.length > 0 && is_cut(text, &run, how);
		else if (run.length >= NEARLY_SECRET)
			is_secret = run.length >= AK_SECRET_TAIL ||
				(run.upper > 0 && run.lower > 0) ||
				is_cut_name(text, &run) ||
				is_cut(text, &run, how) ||
				follows_known_prefix(text, underscore, &run);
		else
			is_secret = follows_known_prefix(text, underscore, &run) ||
				is_cut(text, &run, how);
		if (is_secret && mask(&run))
			changed = true;
		underscore = strchr(run.end, '_');
	}
	return changed;
}

/* Mask what looks like a secret in a statement; says whether there was any. */
bool
ak_redact_statement(char *text)
{
	return redact(text, 0);
}

/* The end of a secret that has lost its prefix, not a number or lower-case word. */
static void
redact_end(char *text)
{
	Run			run;

	read_run(text, 0, &run);
	if (run.length > AK_START_RANDOM && run.lower < run.length &&
		run.digits < run.length)
		mask(&run);
}

/*
 * Where JSON is wrong, the server shows the 50 bytes before, after three dots,
 * in the language of its messages: there a secret may have lost its prefix.
 */
static void
redact_json(char *text)
{
	char	   *c = text;

	if (text == NULL)
		return;
	while ((c = strstr(c, "...")) != NULL)
	{
		c += 3;
		redact_end(c);
	}
}

/* A "^" that far to the right is below a line that may have been cut. */
#define XML_SHOWN 70

/*
 * Where XML is wrong, its library shows the line up to there, or the last 80
 * characters of that, with a "^" below: there, too.
 */
static void
redact_xml(char *text)
{
	for (char *line = text; line != NULL;)
	{
		char	   *next = strchr(line, '\n');
		int			indent;

		if (next == NULL)
			return;
		next++;
		indent = strspn(next, " ");
		if (next[indent] == '^' && indent >= XML_SHOWN)
			redact_end(line);
		line = next;
	}
}

/*
 * A dump of a tree (debug_print_plan and the like) shows a constant's bytes as
 * numbers after how many they are, ":constvalue 45 [ -76 0 0 0 97 107 95 ... ]",
 * or "<>".  A line may end instead of a space or, with debug_pretty_print,
 * within a number.  All are masked but eight bytes or fewer: numbers have them.
 */
static void
redact_constants(char *text)
{
	const char *name = ":constvalue";
	char	   *c = text;

	while ((c = strstr(c, name)) != NULL)
	{
		int			bytes = 0;

		c += strlen(name);
		for (; *c == ' ' || *c == '\n' || (*c >= '0' && *c <= '9'); c++)
			if (*c >= '0' && bytes <= 8)
				bytes = bytes * 10 + *c - '0';
		if (*c != '[')
			continue;
		for (c++; *c == ' ' || *c == '\n' || *c == '-' || (*c >= '0' && *c <= '9'); c++)
			if (*c >= '0' && bytes > 8)
				*c = AK_MASK;
	}
}

/*
 * Where auto_explain shows parameters, it may have cut them.
 */
static void
redact_message(char *text)
{
	const char *begin = "duration: ";

	redact(text, text != NULL && strncmp(text, begin, strlen(begin)) == 0 ?
		   CUT_BY_DOTS : 0);
}

static void
redact_detail(char *text)
{
	int			how = CUT_BY_DOTS | CUT_AS_ACTIVITY;

	if (text == NULL)
		return;
	if (strchr("{(", text[strspn(text, " \n")]) != NULL)
	{
		/* maybe the dump of a tree */
		redact_constants(text);
		how |= BROKEN_LINES;
	}
	redact(text, how);
	redact_xml(text);
}

static void
emit_log(ErrorData *edata)
{
	if (ak_redact_log)
	{
		redact_message(edata->message);
		redact_detail(edata->detail);
		redact_detail(edata->detail_log);
		redact(edata->hint, 0);
		redact(edata->context, CUT_BY_DOTS);
		redact_json(edata->context);
		redact(edata->internalquery, 0);
		if (!edata->hide_stmt)
			ak_redact_own_statement(edata->elevel == ERROR);
	}
	if (prev_emit_log)
		prev_emit_log(edata);

	/* A refused request is no fault of the server: the history has it. */
	if (edata->sqlerrcode == AK_ERRCODE_PGRST && edata->hide_stmt &&
		edata->hide_ctx)
		edata->output_to_server = false;
}

/*
 * Remember the prefix of a secret that was made or found here.  They are few;
 * those beyond AK_PREFIXES are not remembered.
 */
void
ak_redact_learn(const char *prefix, int length)
{
	static char last[AK_PREFIX_MAX + 1];

	Assert(length > 0 && length <= AK_PREFIX_MAX);
	if (memcmp(last, prefix, length) == 0 && last[length] == '\0')
		return;
	memcpy(last, prefix, length);
	last[length] = '\0';
	if (is_known_prefix(last, length))
		return;

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	if (!is_known_prefix(last, length))
	{
		uint32		n = pg_atomic_read_u32(&ak_shared->nprefixes);

		if (n < AK_PREFIXES)
		{
			/* Those who log take no lock. */
			strcpy(ak_shared->prefixes[n], last);
			pg_write_barrier();
			pg_atomic_write_u32(&ak_shared->nprefixes, n + 1);
		}
	}
	LWLockRelease(ak_shared->control);
}

void
ak_redact_install(void)
{
	prev_emit_log = emit_log_hook;
	emit_log_hook = emit_log;
}
