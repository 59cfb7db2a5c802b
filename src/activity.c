/*-------------------------------------------------------------------------
 *
 * activity.c
 *	  Keep secrets out of the statements that others can see.
 *
 * pg_stat_activity shows the text of a statement while it runs and after, and
 * pg_stat_statements keeps texts: without their literals, but not of CALL, DO
 * and their like.  So the text of a statement from a client is masked where
 * the server keeps it, once it is parsed, and the activity reported again.
 * Nothing can be done before that; but where parsing fails, the message of it
 * does the same (redact.c).
 *
 * Of statements that define something the text is left as it is, lest who
 * replicates it (pg_stat_statements keeps it as well) replicates the mask.
 * Only the activity shows it masked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/backend_status.h"
#include "utils/memutils.h"

#include "apikeys.h"

static post_parse_analyze_hook_type prev_post_parse_analyze = NULL;
static ExecutorStart_hook_type prev_executor_start = NULL;

static void
report(const char *text, uint64 query_id)
{
	pgstat_report_activity(STATE_RUNNING, text);
	if (query_id != 0)
		pgstat_report_query_id(query_id, true);
}

/*
 * The text of a client's message, debug_query_string.  All statements that it
 * has share it: it is looked at once, not with each of them.
 */
typedef struct Message
{
	const char *text;
	TimestampTz at;				/* messages may have their texts in one place */
	bool		is_masked;		/* in place */
	bool		is_unreported;	/* and that has changed it, which is to be told */
	bool		is_copied;		/* a masked copy was told of */
} Message;

static Message message;

static void
look_at_message(void)
{
	TimestampTz at = GetCurrentStatementStartTimestamp();

	if (message.text != debug_query_string || message.at != at)
		message = (Message)
	{
		.text = debug_query_string,.at = at
	};
}

/* Mask it where the server keeps it. */
static void
mask_message(void)
{
	look_at_message();
	if (message.text == NULL || message.is_masked)
		return;
	message.is_masked = true;
	if (ak_redact_statement(unconstify(char *, message.text)))
		message.is_unreported = true;
}

static void
report_message(uint64 query_id)
{
	message.is_unreported = false;
	report(message.text, query_id);
}

/* Report it masked, and leave it as it is. */
static void
report_copy(uint64 query_id)
{
	char	   *copy;

	look_at_message();
	if (message.is_unreported)
		report_message(query_id);
	if (message.text == NULL || message.is_masked || message.is_copied)
		return;
	message.is_copied = true;
	if (strchr(message.text, '_') == NULL)
		return;
	copy = pstrdup(message.text);
	if (ak_redact_statement(copy))
		report(copy, query_id);
	pfree(copy);
}

/* DDL, as log_statement understands it, but for what runs a query. */
static bool
defines_something(Node *utility)
{
	return utility != NULL && !IsA(utility, CreateTableAsStmt) &&
		!IsA(utility, ExplainStmt) &&
		GetCommandLogLevel(utility) == LOGSTMT_DDL;
}

/*
 * Mask the text of a statement from a client, in place if it may be, and
 * report it again if that has changed it.  The texts may be one.
 */
static void
conceal(Node *utility, const char *text, uint64 query_id)
{
	if (defines_something(utility))
		report_copy(query_id);
	else
	{
		bool		changed = text != debug_query_string &&
			ak_redact_statement(unconstify(char *, text));

		mask_message();
		if (message.text != NULL && (changed || message.is_unreported))
			report_message(query_id);
	}
}

/*
 * The text of the statement is about to be logged.  Nothing is allocated or
 * raised here.  "report_it": it has failed, maybe before it was parsed.
 */
void
ak_redact_own_statement(bool report_it)
{
	mask_message();
	if (message.is_unreported && report_it && MyProcPort != NULL &&
		CritSectionCount == 0)
		report_message(0);
}

static void
post_parse_analyze(ParseState *pstate, Query *query, JumbleState *jstate)
{
	/* From a client, not from a function that uses the text again. */
	if (ak_redact_log && pstate->p_sourcetext != NULL &&
		pstate->p_sourcetext == debug_query_string)
		conceal(query->utilityStmt, pstate->p_sourcetext, query->queryId);
	if (prev_post_parse_analyze)
		prev_post_parse_analyze(pstate, query, jstate);
}

/*
 * A prepared statement is not parsed again: the portal has its own text.  What a
 * parallel worker shows is the text of its query, which may be a function's.
 */
static void
executor_start(QueryDesc *query, int eflags)
{
	const char *shown = IsParallelWorker() ? debug_query_string :
		ActivePortal != NULL ? ActivePortal->sourceText : NULL;

	if (ak_redact_log && shown != NULL && query->sourceText == shown)
		conceal(NULL, query->sourceText, query->plannedstmt->queryId);
	if (prev_executor_start)
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

/*
 * The text for what is called next by ProcessUtility_hook: that of a statement
 * within a function is masked in a copy.
 */
const char *
ak_redact_utility(const PlannedStmt *statement, const char *text)
{
	char	   *copy;

	if (!ak_redact_log || text == NULL)
		return text;
	if (text == debug_query_string ||
		(ActivePortal != NULL && text == ActivePortal->sourceText))
	{
		conceal(statement->utilityStmt, text, statement->queryId);
		return text;
	}
	if (defines_something(statement->utilityStmt) || strchr(text, '_') == NULL)
		return text;
	/* A procedure may end the transaction meanwhile. */
	copy = MemoryContextStrdup(PortalContext ? PortalContext :
							   CurrentMemoryContext, text);
	if (ak_redact_statement(copy))
		return copy;
	pfree(copy);
	return text;
}

void
ak_activity_install(void)
{
	prev_post_parse_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = post_parse_analyze;
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
}
