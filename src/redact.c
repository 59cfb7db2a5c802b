/*-------------------------------------------------------------------------
 *
 * redact.c
 *	  Keep secrets out of the server log.
 *
 * A caller may put a secret into a statement as a literal, and the statement
 * into the log by an error or by log_statement.  Whatever has the form of a
 * secret is masked in place, its start left, before a message is written.  No
 * memory is allocated and nothing is raised here.
 *
 * The text of the statement is masked as well.  It has been parsed by then, or
 * failed to: only messages are still made of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "tcop/tcopprot.h"
#include "utils/elog.h"

#include "http.h"

static emit_log_hook_type prev_emit_log = NULL;

static void
mask(char *text)
{
	char	   *run = NULL;		/* first base62 character after an underscore */

	for (char *c = text; text != NULL; c++)
	{
		if (ak_is_base62(*c))
			continue;
		if (run != NULL && c - run >= AK_SECRET_TAIL)
			memset(run + AK_START_RANDOM, '*', c - run - AK_START_RANDOM);
		if (*c == '\0')
			return;
		run = *c == '_' && c > text ? c + 1 : NULL;
	}
}

static void
emit_log(ErrorData *edata)
{
	if (ak_redact_log)
	{
		mask(edata->message);
		mask(edata->detail);
		mask(edata->detail_log);
		mask(edata->hint);
		mask(edata->context);
		mask(edata->internalquery);
		if (!edata->hide_stmt)
			mask(unconstify(char *, debug_query_string));
	}
	if (prev_emit_log)
		prev_emit_log(edata);

	/* A refused request is no fault of the server: the history has it. */
	if (edata->sqlerrcode == AK_ERRCODE_PGRST && edata->hide_stmt &&
		edata->hide_ctx)
		edata->output_to_server = false;
}

void
ak_redact_install(void)
{
	prev_emit_log = emit_log_hook;
	emit_log_hook = emit_log;
}
