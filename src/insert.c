/*-------------------------------------------------------------------------
 *
 * insert.c
 *	  Insert history records into apikeys.requests.
 *
 * As COPY FROM does it: rows find their partition, go into it by the page, and
 * then get their entries in its indexes; defaults, constraints and triggers
 * hold.  But the rows are made from the records as they are in the buffer, with
 * no format in between, and become tuples only in their page.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "foreign/fdwapi.h"
#include "optimizer/optimizer.h"
#include "parser/parse_relation.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "worker.h"

/* Rows inserted at once: 1,000 is also COPY's. */
#define BATCH 1000

enum
{
	TIMESTAMP, KEY_ID, ENDPOINT, METHOD, STATUS, CODE, IP_ADDRESS, COST, TAGS,
	COLUMNS
};

static const char *const column_names[COLUMNS] = {
	"timestamp", "key_id", "endpoint", "method", "status", "code",
	"ip_address", "cost", "tags"
};

/* A column that is not ours, with a default. */
typedef struct Default
{
	AttrNumber	attnum;
	ExprState  *value;
} Default;

typedef struct Insertion
{
	EState	   *estate;
	ModifyTableState *node;		/* what rows find their partition for */
	ResultRelInfo *table;
	PartitionTupleRouting *routing;
	int			columns[COLUMNS];	/* their places in a row of the table */
	int			ndefaults;
	Default    *defaults;
	Datum		allowed;		/* texts */
	Datum		denied;
	Datum		codes[AK_OUTCOMES];
	TupleTableSlot *row;		/* the next one, as the table has it */

	/* Rows of one partition that are yet to be inserted. */
	ResultRelInfo *partition;
	TupleTableSlot *rows[BATCH];	/* made when they are needed first */
	int			nrows;
	int			capacity;		/* 1 where a trigger may look at the last row */
	BulkInsertState bulk;
	MemoryContext memory;		/* of these rows */
} Insertion;

/* ----- from a record to a row ----- */

static Datum
text_of(const char *data, int length)
{
	return PointerGetDatum(cstring_to_text_with_len(data, length));
}

static Datum
inet_of(const char *data, int length)
{
	inet	   *address = palloc0(VARHDRSZ + length);

	SET_VARSIZE(address, VARHDRSZ + length);
	memcpy(VARDATA(address), data, length);
	return PointerGetDatum(address);
}

static Datum
tags_of(const char *data, int n)
{
	Datum	   *tags;

	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	tags = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		uint16		length;

		memcpy(&length, data, sizeof(length));
		tags[i] = text_of(data + sizeof(length), length);
		data += sizeof(length) + length;
	}
	return PointerGetDatum(construct_array(tags, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static void
set_column(Insertion *insertion, int column, Datum value)
{
	TupleTableSlot *row = insertion->row;

	row->tts_values[insertion->columns[column]] = value;
	row->tts_isnull[insertion->columns[column]] = false;
}

/* Make the next row.  It points into the record and into the batch's memory. */
static void
make_row(Insertion *insertion, const AkRecord *record)
{
	TupleTableSlot *row = insertion->row;
	const char *ip = record->data;
	const char *method = ip + Max(record->ip_len, 0);
	const char *endpoint = method + Max(record->method_len, 0);
	const char *tags = endpoint + Max(record->endpoint_len, 0);
	MemoryContext caller = MemoryContextSwitchTo(insertion->memory);

	ExecClearTuple(row);
	memset(row->tts_isnull, true, row->tts_tupleDescriptor->natts);
	set_column(insertion, TIMESTAMP, TimestampTzGetDatum(record->timestamp));
	set_column(insertion, KEY_ID, UUIDPGetDatum(&record->key_id));
	if (record->endpoint_len >= 0)
		set_column(insertion, ENDPOINT, text_of(endpoint, record->endpoint_len));
	if (record->method_len >= 0)
		set_column(insertion, METHOD, text_of(method, record->method_len));
	set_column(insertion, STATUS, record->outcome >= AK_VALID ?
			   insertion->allowed : insertion->denied);
	set_column(insertion, CODE, insertion->codes[record->outcome]);
	if (record->ip_len >= 0)
		set_column(insertion, IP_ADDRESS, inet_of(ip, record->ip_len));
	set_column(insertion, COST, Int64GetDatum(record->cost));
	if (record->ntags >= 0)
		set_column(insertion, TAGS, tags_of(tags, record->ntags));
	for (int i = 0; i < insertion->ndefaults; i++)
	{
		const Default *other = &insertion->defaults[i];

		row->tts_values[other->attnum - 1] =
			ExecEvalExpr(other->value, GetPerTupleExprContext(insertion->estate),
						 &row->tts_isnull[other->attnum - 1]);
	}
	ExecStoreVirtualTuple(row);
	MemoryContextSwitchTo(caller);
}

/* ----- from rows to their partition ----- */

static bool
has_before_trigger(const ResultRelInfo *partition)
{
	return partition->ri_TrigDesc != NULL &&
		partition->ri_TrigDesc->trig_insert_before_row;
}

static bool
has_after_trigger(const ResultRelInfo *partition)
{
	return partition->ri_TrigDesc != NULL &&
		partition->ri_TrigDesc->trig_insert_after_row;
}

/* The row is in its partition: its index entries, and AFTER triggers. */
static void
finish_row(Insertion *insertion, TupleTableSlot *row)
{
	ResultRelInfo *partition = insertion->partition;
	List	   *recheck = NIL;

	if (partition->ri_NumIndices > 0)
		recheck = ak_insert_index_tuples(partition, row, insertion->estate);
	if (has_after_trigger(partition) ||
		insertion->node->mt_transition_capture != NULL)
		ExecARInsertTriggers(insertion->estate, partition, row, recheck,
							 insertion->node->mt_transition_capture);
}

static void
insert_rows(Insertion *insertion)
{
	ResultRelInfo *partition = insertion->partition;

	if (insertion->nrows == 0)
		return;
	if (partition->ri_FdwRoutine != NULL)
		(void) partition->ri_FdwRoutine->ExecForeignInsert(insertion->estate,
														   partition,
														   insertion->rows[0],
														   NULL);
	else
	{
		MemoryContext caller = MemoryContextSwitchTo(insertion->memory);

		table_multi_insert(partition->ri_RelationDesc, insertion->rows,
						   insertion->nrows, GetCurrentCommandId(true), 0,
						   insertion->bulk);
		MemoryContextSwitchTo(caller);
	}
	for (int i = 0; i < insertion->nrows; i++)
	{
		finish_row(insertion, insertion->rows[i]);
		ExecClearTuple(insertion->rows[i]);
	}
	insertion->nrows = 0;
}

static void
leave_partition(Insertion *insertion)
{
	insert_rows(insertion);
	for (int i = 0; i < BATCH && insertion->rows[i] != NULL; i++)
	{
		ExecDropSingleTupleTableSlot(insertion->rows[i]);
		insertion->rows[i] = NULL;
	}
	if (insertion->bulk != NULL)
		FreeBulkInsertState(insertion->bulk);
	insertion->bulk = NULL;
	insertion->partition = NULL;
}

static void
enter_partition(Insertion *insertion, ResultRelInfo *partition)
{
	bool		one_by_one = partition->ri_FdwRoutine != NULL ||
		has_before_trigger(partition);

	insertion->partition = partition;
	insertion->capacity = one_by_one ? 1 : BATCH;
	insertion->bulk = GetBulkInsertState();
}

/* The next row as its partition has it, in the batch. */
static TupleTableSlot *
convert_row(Insertion *insertion)
{
	ResultRelInfo *partition = insertion->partition;
	TupleConversionMap *map = ak_root_to_child_map(partition, insertion->estate);
	TupleTableSlot *from = insertion->row;
	TupleTableSlot **to = &insertion->rows[insertion->nrows];

	if (*to == NULL)
		*to = MakeSingleTupleTableSlot(RelationGetDescr(partition->ri_RelationDesc),
									   &TTSOpsVirtual);
	if (map != NULL)
		execute_attr_map_slot(map->attrMap, from, *to);
	else
	{
		int			n = from->tts_tupleDescriptor->natts;

		ExecClearTuple(*to);
		memcpy((*to)->tts_values, from->tts_values, n * sizeof(Datum));
		memcpy((*to)->tts_isnull, from->tts_isnull, n * sizeof(bool));
		ExecStoreVirtualTuple(*to);
	}
	(*to)->tts_tableOid = RelationGetRelid(partition->ri_RelationDesc);
	return *to;
}

/* Put the next row into the batch of its partition, after BEFORE triggers. */
static void
put_row(Insertion *insertion)
{
	EState	   *estate = insertion->estate;
	ResultRelInfo *partition;
	TupleConstr *constraints;
	TupleTableSlot *row;

	partition = ExecFindPartition(insertion->node, insertion->table,
								  insertion->routing, insertion->row, estate);
	if (partition != insertion->partition)
	{
		leave_partition(insertion);
		enter_partition(insertion, partition);
	}
	row = convert_row(insertion);
	if (has_before_trigger(partition) &&
		!ExecBRInsertTriggers(estate, partition, row))
		return;					/* not wanted */
	constraints = partition->ri_RelationDesc->rd_att->constr;
	if (constraints != NULL)
	{
		if (constraints->has_generated_stored)
			ExecComputeStoredGenerated(partition, estate, row, CMD_INSERT);
		ExecConstraints(partition, row, estate);
	}
	if (++insertion->nrows == insertion->capacity)
		insert_rows(insertion);
}

/* ----- the table ----- */

/* Where our columns are, and what the others have by default. */
static void
find_columns(Insertion *insertion, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool	   *is_ours = palloc0(desc->natts * sizeof(bool));

	for (int i = 0; i < COLUMNS; i++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), column_names[i]);

		if (attnum == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							column_names[i], RelationGetRelationName(rel))));
		insertion->columns[i] = attnum - 1;
		is_ours[attnum - 1] = true;
	}
	insertion->defaults = palloc(desc->natts * sizeof(Default));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Expr	   *value;

		if (is_ours[i] || attribute->attisdropped || attribute->attgenerated)
			continue;
		value = (Expr *) build_column_default(rel, i + 1);
		if (value != NULL)
			insertion->defaults[insertion->ndefaults++] = (Default)
			{
				.attnum = i + 1,
				.value = ExecInitExpr(expression_planner(value), NULL)
			};
	}
	pfree(is_ours);
}

/* In the memory of the executor's state. */
static void
begin(Insertion *insertion, EState *estate, Relation rel)
{
	ParseState *pstate = make_parsestate(NULL);
	ModifyTableState *node = makeNode(ModifyTableState);

	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL,
										 false, false);
	ak_init_range_table(estate, pstate);
	insertion->estate = estate;
	insertion->table = makeNode(ResultRelInfo);
	ExecInitResultRelation(estate, insertion->table, 1);
	node->ps.state = estate;
	node->operation = CMD_INSERT;
	node->mt_nrels = 1;
	node->resultRelInfo = node->rootResultRelInfo = insertion->table;
	node->mt_transition_capture = MakeTransitionCaptureState(rel->trigdesc,
															 RelationGetRelid(rel),
															 CMD_INSERT);
	insertion->node = node;
	insertion->routing = ExecSetupPartitionTupleRouting(estate, rel);
	insertion->row = MakeSingleTupleTableSlot(RelationGetDescr(rel),
											  &TTSOpsVirtual);
	insertion->memory = AllocSetContextCreate(CurrentMemoryContext,
											  "apikeys history rows",
											  ALLOCSET_DEFAULT_SIZES);
	find_columns(insertion, rel);
	insertion->allowed = CStringGetTextDatum("allowed");
	insertion->denied = CStringGetTextDatum("denied");
	for (int o = 0; o < AK_OUTCOMES; o++)
		insertion->codes[o] = CStringGetTextDatum(ak_outcome_name(o));
}

/*
 * Insert records into apikeys.requests.  To be called in a transaction with an
 * active snapshot.
 */
void
ak_insert_history(const AkRecord **records, int n)
{
	Relation	rel = table_open(ak_catalog()->requests, RowExclusiveLock);
	EState	   *estate = CreateExecutorState();
	MemoryContext caller = MemoryContextSwitchTo(estate->es_query_cxt);
	Insertion	insertion = {0};

	AfterTriggerBeginQuery();
	begin(&insertion, estate, rel);
	ExecBSInsertTriggers(estate, insertion.table);
	for (int i = 0; i < n; i++)
	{
		/* What was made for rows that are inserted is not needed any more. */
		if (insertion.nrows == 0)
		{
			ResetPerTupleExprContext(estate);
			MemoryContextReset(insertion.memory);
		}
		make_row(&insertion, records[i]);
		put_row(&insertion);
	}
	leave_partition(&insertion);
	ExecASInsertTriggers(estate, insertion.table,
						 insertion.node->mt_transition_capture);
	AfterTriggerEndQuery(estate);

	ExecResetTupleTable(estate->es_tupleTable, false);
	ExecDropSingleTupleTableSlot(insertion.row);
	ExecCleanupTupleRouting(insertion.node, insertion.routing);
	ExecCloseResultRelations(estate);
	ExecCloseRangeTableRelations(estate);
	MemoryContextSwitchTo(caller);
	FreeExecutorState(estate);
	table_close(rel, NoLock);
}
