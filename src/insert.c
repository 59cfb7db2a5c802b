/*-------------------------------------------------------------------------
 *
 * insert.c
 *	  Insert history records into apikeys.requests.
 *
 * As COPY FROM does it: rows find their partition, go into it by the page, and
 * then get their entries in its indexes; defaults, constraints and triggers
 * hold.  But the rows are made from the records as they are in the buffer, with
 * no format in between.
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
#include "parser/parse_coerce.h"
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

static const Oid column_types[COLUMNS] = {
	TIMESTAMPTZOID, UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INETOID,
	INT8OID, TEXTARRAYOID
};

/*
 * A column whose value is to be computed: one that is not ours, from its
 * default, or one of ours whose type was changed, from ours (as a CASE's).
 */
typedef struct Computed
{
	int			column;			/* its place in a row of the table */
	ExprState  *value;
} Computed;

typedef struct Insertion
{
	EState	   *estate;
	ModifyTableState *node;		/* what rows find their partition for */
	ResultRelInfo *table;
	PartitionTupleRouting *routing;
	int			columns[COLUMNS];	/* their places in a row of the table */
	int			ncomputed;
	Computed   *computed;
	bool		one_by_one;		/* a default may look at the row before */
	Datum		allowed;		/* texts */
	Datum		denied;
	Datum		codes[AK_OUTCOMES];
	TupleTableSlot *row;		/* the next one, as the table has it */

	/* Rows of one partition that are yet to be inserted. */
	ResultRelInfo *partition;
	TupleTableSlot *rows[BATCH];	/* made when they are needed first */
	int			nrows;
	int			capacity;		/* 1 where a row may depend on the one before */
	MemoryContext memory;		/* of these rows */
	BulkInsertState bulk;
} Insertion;

/* ----- from a record to a row ----- */

static Datum
text_of(const char *data, int length)
{
	return PointerGetDatum(cstring_to_text_with_len(data, length));
}

/*
 * What the caller said of a request, at most "max" bytes of it.  A client may have
 * put its secret there, which no table shall have.
 */
static Datum
said(const char *data, int length, int max)
{
	Datum		value = text_of(data, length);

	/* It was cut at a character, of four bytes at most. */
	ak_secret_mask(VARDATA(DatumGetPointer(value)), length, length > max - 4);
	return value;
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
		tags[i] = said(data + sizeof(length), length, PG_INT32_MAX);
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
		set_column(insertion, ENDPOINT, said(endpoint, record->endpoint_len,
											AK_ENDPOINT_MAX));
	if (record->method_len >= 0)
		set_column(insertion, METHOD, said(method, record->method_len,
										  AK_METHOD_MAX));
	set_column(insertion, STATUS, record->outcome >= AK_VALID ?
			   insertion->allowed : insertion->denied);
	set_column(insertion, CODE, insertion->codes[record->outcome]);
	if (record->ip_len >= 0)
		set_column(insertion, IP_ADDRESS, inet_of(ip, record->ip_len));
	set_column(insertion, COST, Int64GetDatum(record->cost));
	if (record->ntags >= 0)
		set_column(insertion, TAGS, tags_of(tags, record->ntags));
	for (int i = 0; i < insertion->ncomputed; i++)
	{
		const Computed *computed = &insertion->computed[i];
		ExprContext *context = GetPerTupleExprContext(insertion->estate);
		Datum	   *value = &row->tts_values[computed->column];
		bool	   *isnull = &row->tts_isnull[computed->column];

		context->caseValue_datum = *value;
		context->caseValue_isNull = *isnull;
		*value = ExecEvalExpr(computed->value, context, isnull);
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

/* The row is in its partition: its index entries, and AFTER triggers. */
static void
finish_row(Insertion *insertion, TupleTableSlot *row)
{
	ResultRelInfo *partition = insertion->partition;
	List	   *recheck = NIL;

	if (partition->ri_NumIndices > 0)
		recheck = ak_insert_index_tuples(partition, row, insertion->estate);
	ExecARInsertTriggers(insertion->estate, partition, row, recheck,
						 insertion->node->mt_transition_capture);
	list_free(recheck);
}

/* A foreign table gets its rows one by one, and may say that it got none. */
static void
insert_foreign_row(Insertion *insertion)
{
	ResultRelInfo *partition = insertion->partition;
	TupleTableSlot *row;

	row = partition->ri_FdwRoutine->ExecForeignInsert(insertion->estate,
													  partition,
													  insertion->rows[0], NULL);
	if (row == NULL)
		return;
	row->tts_tableOid = RelationGetRelid(partition->ri_RelationDesc);
	finish_row(insertion, row);
}

static void
insert_table_rows(Insertion *insertion)
{
	MemoryContext caller = MemoryContextSwitchTo(insertion->memory);

	table_multi_insert(insertion->partition->ri_RelationDesc, insertion->rows,
					   insertion->nrows, GetCurrentCommandId(true), 0,
					   insertion->bulk);
	MemoryContextSwitchTo(caller);
	for (int i = 0; i < insertion->nrows; i++)
		finish_row(insertion, insertion->rows[i]);
}

static void
insert_rows(Insertion *insertion)
{
	if (insertion->nrows == 0)
		return;
	if (insertion->partition->ri_FdwRoutine != NULL)
		insert_foreign_row(insertion);
	else
		insert_table_rows(insertion);
	for (int i = 0; i < insertion->nrows; i++)
		ExecClearTuple(insertion->rows[i]);
	insertion->nrows = 0;
}

/* What was made for rows that are inserted is not needed any more. */
static void
forget_inserted(Insertion *insertion)
{
	ResetPerTupleExprContext(insertion->estate);
	MemoryContextReset(insertion->memory);
}

static void
leave_partition(Insertion *insertion)
{
	if (insertion->partition == NULL)
		return;
	insert_rows(insertion);
	if (insertion->partition->ri_FdwRoutine == NULL)
	{
		ReleaseBulkInsertStatePin(insertion->bulk);
		table_finish_bulk_insert(insertion->partition->ri_RelationDesc, 0);
	}
	for (int i = 0; i < BATCH && insertion->rows[i] != NULL; i++)
	{
		ExecDropSingleTupleTableSlot(insertion->rows[i]);
		insertion->rows[i] = NULL;
	}
	insertion->partition = NULL;
}

static void
enter_partition(Insertion *insertion, ResultRelInfo *partition)
{
	bool		one_by_one = insertion->one_by_one ||
		partition->ri_FdwRoutine != NULL || has_before_trigger(partition);

	insertion->partition = partition;
	insertion->capacity = one_by_one ? 1 : BATCH;
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
		*to = table_slot_create(partition->ri_RelationDesc, NULL);
	if (map != NULL)
		execute_attr_map_slot(map->attrMap, from, *to);
	else
		ExecCopySlot(*to, from);
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
		ExecMaterializeSlot(insertion->row);
		forget_inserted(insertion);
		enter_partition(insertion, partition);
	}
	row = convert_row(insertion);
	if (has_before_trigger(partition) &&
		!ExecBRInsertTriggers(estate, partition, row))
		return;					/* not wanted */
	constraints = partition->ri_RelationDesc->rd_att->constr;
	if (constraints != NULL && constraints->has_generated_stored)
		ExecComputeStoredGenerated(partition, estate, row, CMD_INSERT);
	if (constraints != NULL && partition->ri_FdwRoutine == NULL)
		ExecConstraints(partition, row, estate);
	if (has_before_trigger(partition))
		ExecPartitionCheck(partition, row, estate, true);
	if (++insertion->nrows == insertion->capacity)
		insert_rows(insertion);
}

/* ----- the table ----- */

static void
add_computed(Insertion *insertion, int column, Node *expression)
{
	Expr	   *value = expression_planner((Expr *) expression);

	if (contain_volatile_functions_not_nextval((Node *) value))
		insertion->one_by_one = true;
	insertion->computed[insertion->ncomputed++] = (Computed)
	{
		.column = column,
		.value = ExecInitExpr(value, NULL)
	};
}

/* From a value of our type to a column's, as an assignment converts it. */
static Node *
conversion_to(const FormData_pg_attribute *attribute, Oid type)
{
	CaseTestExpr *ours = makeNode(CaseTestExpr);
	Node	   *converted;

	ours->typeId = type;
	ours->typeMod = -1;
	ours->collation = get_typcollation(type);
	converted = coerce_to_target_type(NULL, (Node *) ours, type,
									  attribute->atttypid, attribute->atttypmod,
									  COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST,
									  -1);
	if (converted == NULL || attribute->attgenerated)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of the history cannot be written",
						NameStr(attribute->attname)),
				 errdetail("It should be an ordinary column of type %s.", format_type_be(type))));
	return converted;
}

/* Where our columns are, and what is to be computed. */
static void
find_columns(Insertion *insertion, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool	   *is_ours = palloc0(desc->natts * sizeof(bool));

	insertion->computed = palloc(desc->natts * sizeof(Computed));
	for (int i = 0; i < COLUMNS; i++)
	{
		int			column = get_attnum(RelationGetRelid(rel), column_names[i]) - 1;
		FormData_pg_attribute *attribute;

		if (column < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							column_names[i], RelationGetRelationName(rel))));
		attribute = TupleDescAttr(desc, column);
		insertion->columns[i] = column;
		is_ours[column] = true;
		if (attribute->atttypid != column_types[i] ||
			attribute->atttypmod != -1 || attribute->attgenerated)
			add_computed(insertion, column,
						 conversion_to(attribute, column_types[i]));
	}
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Node	   *value;

		if (is_ours[i] || attribute->attisdropped || attribute->attgenerated)
			continue;
		value = build_column_default(rel, i + 1);
		if (value != NULL)
			add_computed(insertion, i, value);
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
	insertion->bulk = GetBulkInsertState();
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
		if (insertion.nrows == 0)
			forget_inserted(&insertion);
		make_row(&insertion, records[i]);
		put_row(&insertion);
	}
	leave_partition(&insertion);
	FreeBulkInsertState(insertion.bulk);
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
