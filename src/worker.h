/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What the files that run in a database's worker share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_WORKER_H
#define APIKEYS_WORKER_H

#include "apikeys.h"

/*
 * bgw_main_arg of a worker: the database, and whether it only comes to tidy
 * up.
 */
#define AK_WORKER_ARG(dboid, visit) \
	Int64GetDatum((int64) (dboid) | ((visit) ? (int64) 1 << 32 : 0))
#define AK_WORKER_DATABASE(arg) ((Oid) (DatumGetInt64(arg) & PG_UINT32_MAX))
#define AK_WORKER_IS_VISIT(arg) ((DatumGetInt64(arg) >> 32) != 0)

/* worker.c */
extern AkDatabase *ak_my_db;	/* whose worker this process is */
extern bool ak_my_db_is_closing;	/* what is written now gates no admission */

/* worker_transaction.c */
typedef void (*AkTransaction) (void *arg);

extern volatile sig_atomic_t ak_worker_cancels; /* how often a statement was */

extern bool ak_worker_transaction(AkTransaction body, void *arg);
extern bool ak_worker_durable_transaction(AkTransaction body, void *arg);
extern void ak_worker_check_interrupts(void);
extern bool ak_worker_is_orphaned(void);

/* worker_sql.c */
extern void ak_run(const char *query);
extern void ak_set_locally(const char *name, const char *value);
extern void ak_plan_by_index(void);
extern Datum ak_array_of(Oid type, Datum *values, int n, Oid *array_type);
extern Datum ak_returned(uint64 row, int column, bool *isnull);

/* worker_loop.c */
typedef struct AkFlush AkFlush;

extern void ak_worker_report(const char *activity);
extern void ak_worker_serve(AkFlush *flush);

/* flush.c */
extern AkFlush *ak_flush_create(AkDatabase *db);
typedef enum AkPass
{
	AK_PASS_URGENT,				/* only ceilings that were asked for */
	AK_PASS_INTERVAL,			/* all that is due at an interval */
	AK_PASS_CLOSING				/* all, exactly as it is */
} AkPass;

extern bool ak_flush_counts(AkFlush *flush, AkPass pass);

/* flush_history.c: what was in the buffer when it began, by parts. */
typedef struct AkHistoryFlush
{
	AkLanePosition ends[AK_LANES];
	bool		done;
} AkHistoryFlush;

extern void ak_flush_history_begin(AkDatabase *db, AkHistoryFlush *flush);
extern bool ak_flush_history_part(AkDatabase *db, AkHistoryFlush *flush);

/* incarnation.c */
extern bool ak_incarnation_settle(AkDatabase *db);
extern bool ak_incarnation_open(AkDatabase *db);
extern bool ak_incarnation_close(AkDatabase *db, AkFlush *flush);

/* marks.c */
extern void ak_marks_leave(AkDatabase *db);
extern void ak_marks_take(AkDatabase *db);

/* insert.c */
extern void ak_insert_history(const AkRecord **records, int n);

/* rollup_journal.c */
#define AK_ROLLUP_COLUMNS 6		/* of apikeys.rollups */

extern int	ak_journal_write(const AkRecord **records, int n);
extern void ak_journal_take(Datum ids, Oid *types, Datum *columns);

/* rollup.c */
extern void ak_rollup_noted(AkDatabase *db, int counts);
extern int64 ak_rollup_due(AkDatabase *db);
extern void ak_rollup_step(AkDatabase *db);
extern void ak_rollup_close(AkDatabase *db);
extern void ak_rollup_visit(AkDatabase *db);

/* maintain.c */
typedef enum AkStepResult
{
	AK_STEP_FAILED,				/* the error is in the server log; next round */
	AK_STEP_AGAIN,				/* there is more of the same to do */
	AK_STEP_DONE
} AkStepResult;

extern void ak_maintain_begin(bool flushed);
extern AkStepResult ak_maintain_run(AkTransaction body, void *arg, const bool *again);
extern bool ak_maintain_step(void);

/* partitions.c */
extern void ak_partitions_begin(void);
extern AkStepResult ak_partition_step(void);
extern AkStepResult ak_retention_step(void);

/* last_used.c */
extern void ak_note_use(const pg_uuid_t *key_id, TimestampTz at);
extern void ak_write_uses(AkDatabase *db, bool all);
extern bool ak_uses_are_due(void);
extern int64 ak_uses_retry_at(void);

#endif							/* APIKEYS_WORKER_H */
