/*-------------------------------------------------------------------------
 *
 * apikeys.h
 *	  What the files of apikeys share.
 *
 * A verification goes through the files in this order:
 *
 *	  verify.c		 the decision, in the order of the outcomes
 *	  secret.c		 parse the secret, make its digest
 *	  find_key.c	 find the key's row (hints.c: where it was last time)
 *	  subject.c		 find its user and its plan (users.c, lookup.c)
 *	  permissions.c	 what the key may do (expression.c parses the question),
 *	  address.c		 and from where
 *	  limits.c		 the limits it is held to (period.c: which period is now;
 *					 credits.c: when they refill)
 *	  meter.c		 count, in shared memory
 *	  history.c		 remember, in shared memory
 *	  current.c		 who is calling, for the rest of the transaction
 *
 * http.c asks on behalf of an HTTP request, which PostgREST describes in
 * settings (http_address.c, http_headers.c).  One background worker a database
 * (launcher.c, worker.c) makes counts and history durable (flush.c,
 * flush_history.c), counts by hour and day (rollup.c) and tidies up (maintain.c).
 *
 * What each part offers is in its header; which locks there are, and their order,
 * is in database.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_H
#define APIKEYS_H

#include "fmgr.h"
#include "nodes/plannodes.h"

#include "catalog.h"
#include "charge.h"
#include "compat.h"
#include "database.h"
#include "history.h"
#include "outcome.h"
#include "period.h"
#include "secret.h"
#include "subject.h"

/* The SQL objects this library works with: pg_extension.extversion. */
#define AK_VERSION "1.0"

/* ----- verify.c: the decision, for other callers than apikey_verify() ----- */

typedef struct AkAsked
{
	NullableDatum secret;		/* text, as are the next two */
	NullableDatum endpoint;
	NullableDatum method;
	const inet *ip_address;		/* NULL: not told */
	int64		cost;
	char	   *permissions;	/* expression, checked; NULL: none asked for */
	char	   *api_id;			/* NULL: any */
} AkAsked;

typedef struct AkDecided
{
	AkOutcome	outcome;
	TimestampTz now;
	const AkKey *key;			/* NULL: not known, as is the next */
	const AkSubject *subject;
	const AkCharge *charge;		/* NULL: no limit was looked at */
} AkDecided;

extern int64 ak_cost_arg(FunctionCallInfo fcinfo, int arg);
extern void ak_verify(const AkAsked *asked, AkDecided *decided);

/* ----- current.c ----- */

extern void ak_current_remember(const AkKey *key, const AkSubject *subject);

/* ----- launcher.c, worker.c ----- */

extern PGDLLEXPORT void ak_launcher_main(Datum arg);
extern PGDLLEXPORT void ak_worker_main(Datum arg);
extern void ak_launcher_register(void);

/* ----- guc.c ----- */

typedef enum AkOverflow
{
	AK_OVERFLOW_WAIT,
	AK_OVERFLOW_DROP
} AkOverflow;

extern char *ak_default_prefix;
extern int	ak_max_tracked_keys;
extern int	ak_max_databases;
extern int	ak_history_buffer;	/* kB */
extern int	ak_flush_interval;	/* ms */
extern bool ak_history;
extern int	ak_history_overflow;
extern int	ak_history_wait_timeout;	/* ms */
extern int	ak_history_retention;	/* min; 0: for ever */
extern int	ak_rollup_retention;	/* min; 0: for ever */
extern int	ak_meter_timeout;	/* ms */
extern int	ak_crash_slack;
extern int	ak_max_reservations;
extern int	ak_expired_key_grace;	/* s */
extern int	ak_sweep_interval;	/* s */
extern int	ak_worker_idle_timeout; /* s */
extern int	ak_last_used_interval;	/* s */
extern int	ak_request_id_window;	/* s */

extern bool ak_redact_log;
extern char *ak_http_header;
extern char *ak_http_api;
extern char *ak_http_public_paths;
extern char *ak_trusted_proxies;
extern bool ak_legacy_rate_headers;

extern void ak_define_settings(void);

/* ----- redact.c, activity.c ----- */

extern void ak_redact_install(void);
extern void ak_redact_learn(const char *prefix, int length);
extern bool ak_redact_statement(char *text);
extern void ak_redact_own_statement(bool report_it);
extern const char *ak_redact_utility(const PlannedStmt *statement,
									 const char *text);
extern void ak_activity_install(void);

/* ----- function_scan.c ----- */

extern void ak_function_scan_install(void);
extern bool ak_hand_over_row(FunctionCallInfo fcinfo, int ncolumns,
							 const Datum *values, const bool *nulls);

/* ----- load_dump.c ----- */

extern bool ak_loads_dump(const Node *node);
extern int	ak_load_dump(void);

/* ----- triggers.c, keys.c ----- */

extern void ak_force_durable_commit(void);
extern void ak_check_dimensions(ArrayType *array, const char *name);
extern void ak_check_expiry(TimestampTz expires_at);

#endif							/* APIKEYS_H */
