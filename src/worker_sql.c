/*-------------------------------------------------------------------------
 *
 * worker_sql.c
 *	  What the statements of a database's worker share: settings, arrays as
 *	  parameters, values that come back.
 *
 * To be called in a transaction of the worker's (worker_transaction.c), in which
 * SPI is connected.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "worker.h"

/* Run a statement that has no parameters. */
void
ak_run(const char *query)
{
	if (SPI_execute(query, false, 0) < 0)
		elog(ERROR, "could not execute: %s", query);
}

/* Set a parameter for the rest of the worker's transaction. */
void
ak_set_locally(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Plan the rest of the transaction by index, whatever the planner thinks of a
 * table's size: tables here grow faster than they are analyzed.
 */
void
ak_plan_by_index(void)
{
	ak_set_locally("enable_seqscan", "off");
	ak_set_locally("enable_bitmapscan", "off");
	ak_set_locally("enable_hashjoin", "off");
	ak_set_locally("enable_mergejoin", "off");
}

/* Values of a type as an array, a parameter of a statement, and its type. */
Datum
ak_array_of(Oid type, Datum *values, int n, Oid *array_type)
{
	int16		length;
	bool		by_value;
	char		align;

	get_typlenbyvalalign(type, &length, &by_value, &align);
	*array_type = get_array_type(type);
	return PointerGetDatum(construct_array(values, n, type, length, by_value,
										   align));
}

/*
 * A column, from 1, of a row, from 0, that the last statement returned.  isnull
 * may be NULL where the column cannot be.
 */
Datum
ak_returned(uint64 row, int column, bool *isnull)
{
	bool		ignored;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column,
						 isnull != NULL ? isnull : &ignored);
}
