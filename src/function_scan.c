/*-------------------------------------------------------------------------
 *
 * function_scan.c
 *	  SELECT ... FROM apikey_verify(...), without the detour.
 *
 * The server's Function Scan is made for sets: it describes all columns of the
 * function's result each time, keeps the rows in a tuplestore, and reads them
 * back.  For one row that takes longer than the decision.  So the planner is
 * given another node for a function of this library that returns one row: it
 * calls the function, and takes those columns from its result that the query
 * asks for.  A function that is called often hands over its columns as they
 * are; of others the result is a tuple, as for any caller.
 *
 * It behaves as a Function Scan does: the function is called when the first row
 * is fetched, and again only if the parameters that it depends on have changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "apikeys.h"

typedef struct CallScanState
{
	CustomScanState scan;
	FmgrInfo	function;
	FunctionCallInfo call;
	ExprState **args;			/* NULL where it is a constant */
	ExprContext *context;		/* of the call: holds its result */
	Bitmapset  *params;			/* that the call depends on */
	int			ncolumns;		/* of the function's type, when planned */
	int			nresults;		/* columns of the function's result */
	Datum	   *values;			/* NULL until the function hands them over */
	bool	   *nulls;
	AttrNumber *columns;		/* of the result, for each of the slot's */
	bool		is_called;
	bool		is_fetched;
} CallScanState;

static Node *create_state(CustomScan *scan);

static const CustomExecMethods exec_methods;

static const CustomScanMethods scan_methods = {
	.CustomName = "apikeys function",
	.CreateCustomScanState = create_state,
};

static set_rel_pathlist_hook_type prev_set_rel_pathlist = NULL;

/* ----- planning ----- */

/* Is it a function of this library?  Its SQL objects name it so. */
static bool
is_ours(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		ours = false;

	if (!HeapTupleIsValid(tuple))
		return false;
	if (((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId)
	{
		bool		isnull;
		Datum		library = SysCacheGetAttr(PROCOID, tuple,
											  Anum_pg_proc_probin, &isnull);

		if (!isnull)
		{
			char	   *name = TextDatumGetCString(library);

			ours = strcmp(name, "$libdir/apikeys") == 0;
			pfree(name);
		}
	}
	ReleaseSysCache(tuple);
	return ours;
}

/* Whether one call of ours, for one row, is all there is to a relation. */
static bool
is_single_call(const RangeTblEntry *rte)
{
	RangeTblFunction *function;
	FuncExpr   *call;

	if (rte->funcordinality || list_length(rte->functions) != 1)
		return false;
	function = linitial_node(RangeTblFunction, rte->functions);
	if (!IsA(function->funcexpr, FuncExpr) || function->funccolnames != NIL)
		return false;
	call = (FuncExpr *) function->funcexpr;
	return !call->funcretset && is_ours(call->funcid) &&
		get_expr_result_type((Node *) call, NULL, NULL) == TYPEFUNC_COMPOSITE &&
		!contain_subplans((Node *) call->args);
}

/* Whole rows, as locking them needs, are left to the Function Scan. */
static bool
needs_columns_only(RelOptInfo *rel)
{
	Bitmapset  *columns = NULL;
	ListCell   *lc;
	int			column;

	pull_varattnos((Node *) rel->reltarget->exprs, rel->relid, &columns);
	foreach(lc, rel->baserestrictinfo)
		pull_varattnos((Node *) lfirst_node(RestrictInfo, lc)->clause,
					   rel->relid, &columns);
	column = bms_next_member(columns, -1);
	return column < 0 || column + FirstLowInvalidHeapAttributeNumber > 0;
}

static Plan *
plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path, List *tlist,
		  List *clauses, List *custom_plans)
{
	CustomScan *scan = makeNode(CustomScan);
	RangeTblEntry *rte = planner_rt_fetch(rel->relid, root);
	List	   *quals = extract_actual_clauses(clauses, false);
	List	   *vars;
	ListCell   *lc;

	/* tlist may be empty here, and be put into the plan later. */
	vars = pull_var_clause((Node *) list_make3(tlist, rel->reltarget->exprs,
											   quals),
						   PVC_RECURSE_PLACEHOLDERS);
	foreach(lc, vars)
	{
		Var		   *var = lfirst_node(Var, lc);

		if (var->varno == rel->relid)
			scan->custom_scan_tlist = add_to_flat_tlist(scan->custom_scan_tlist,
														list_make1(var));
	}
	scan->scan.plan.targetlist = tlist;
	scan->scan.plan.qual = quals;
	scan->flags = path->flags;
	scan->custom_exprs = list_make1(linitial_node(RangeTblFunction,
												  rte->functions)->funcexpr);
	scan->custom_private = list_make1_int(list_length(rte->eref->colnames));
	scan->methods = &scan_methods;
	return &scan->scan.plan;
}

static const CustomPathMethods path_methods = {
	.CustomName = "apikeys function",
	.PlanCustomPath = plan_scan,
};

static void
set_rel_pathlist(PlannerInfo *root, RelOptInfo *rel, Index rti,
				 RangeTblEntry *rte)
{
	Path	   *function_scan;
	CustomPath *path;

	if (prev_set_rel_pathlist)
		prev_set_rel_pathlist(root, rel, rti, rte);
	if (list_length(rel->pathlist) != 1)
		return;
	function_scan = linitial(rel->pathlist);
	if (function_scan->pathtype != T_FunctionScan || !is_single_call(rte) ||
		!needs_columns_only(rel))
		return;

	path = makeNode(CustomPath);
	path->path = *function_scan;
	path->path.type = T_CustomPath;
	path->path.pathtype = T_CustomScan;
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->methods = &path_methods;
	rel->pathlist = list_make1(path);
}

/* ----- execution ----- */

/* pull_paramids() takes a statement's own parameters for these, too. */
static bool
collect_params(Node *node, Bitmapset **params)
{
	if (node == NULL)
		return false;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_EXEC)
		*params = bms_add_member(*params, ((Param *) node)->paramid);
	return expression_tree_walker(node, collect_params, params);
}

/* As an expression that calls it: its right is checked once a statement. */
static void
init_call(CallScanState *state, FuncExpr *call, PlanState *parent)
{
	int			nargs = list_length(call->args);
	AclResult	may_execute = ak_may_execute(call->funcid, GetUserId());
	ListCell   *lc;

	if (may_execute != ACLCHECK_OK)
		aclcheck_error(may_execute, OBJECT_FUNCTION,
					   get_func_name(call->funcid));
	InvokeFunctionExecuteHook(call->funcid);
	fmgr_info(call->funcid, &state->function);
	fmgr_info_set_expr((Node *) call, &state->function);

	state->call = palloc0(SizeForFunctionCallInfo(nargs));
	InitFunctionCallInfoData(*state->call, &state->function, nargs,
							 call->inputcollid, (Node *) state, NULL);
	state->args = palloc0(nargs * sizeof(ExprState *));
	foreach(lc, call->args)
	{
		int			arg = foreach_current_index(lc);
		Const	   *constant = lfirst(lc);

		if (IsA(constant, Const))
		{
			state->call->args[arg].value = constant->constvalue;
			state->call->args[arg].isnull = constant->constisnull;
		}
		else
			state->args[arg] = ExecInitExpr(lfirst(lc), parent);
	}
}

static void
begin_scan(CustomScanState *node, EState *estate, int eflags)
{
	CallScanState *state = (CallScanState *) node;
	CustomScan *scan = (CustomScan *) node->ss.ps.plan;
	FuncExpr   *call = linitial_node(FuncExpr, scan->custom_exprs);
	ListCell   *lc;
	int			n = 0;

	state->ncolumns = linitial_int(scan->custom_private);
	init_call(state, call, &node->ss.ps);
	state->context = CreateExprContext(estate);
	if (!bms_is_empty(scan->scan.plan.allParam))
		collect_params((Node *) call->args, &state->params);
	state->columns = palloc(list_length(scan->custom_scan_tlist) *
							sizeof(AttrNumber));
	foreach(lc, scan->custom_scan_tlist)
		state->columns[n++] = ((Var *) lfirst_node(TargetEntry, lc)->expr)->varattno;
}

/* Whether the function is to be called: a strict one is not for a null. */
static bool
evaluate_args(CallScanState *state)
{
	FunctionCallInfo call = state->call;
	bool		any_null = false;

	for (int i = 0; i < call->nargs; i++)
	{
		if (state->args[i] != NULL)
			call->args[i].value = ExecEvalExpr(state->args[i], state->context,
											   &call->args[i].isnull);
		any_null |= call->args[i].isnull;
	}
	return !any_null || !state->function.fn_strict;
}

/*
 * For a function of this library: hand over the columns of its row instead of
 * making a tuple of them.  What they point to must be in the memory context
 * that the function was called in.  False if it was not called by the node, and
 * must return a tuple.  Errors: XX000 if its type has other columns.
 */
bool
ak_hand_over_row(FunctionCallInfo fcinfo, int ncolumns, const Datum *values,
				 const bool *nulls)
{
	CallScanState *state = (CallScanState *) fcinfo->context;

	if (state == NULL || !IsA(state, CustomScanState) ||
		state->scan.methods != &exec_methods)
		return false;
	if (state->ncolumns != ncolumns)
		elog(ERROR, "unexpected number of columns in the result of an apikeys function");
	state->nresults = ncolumns;
	state->values = palloc(ncolumns * sizeof(Datum));
	memcpy(state->values, values, ncolumns * sizeof(Datum));
	state->nulls = palloc(ncolumns * sizeof(bool));
	memcpy(state->nulls, nulls, ncolumns * sizeof(bool));
	return true;
}

/* The columns of a row that is a tuple. */
static void
take_row(CallScanState *state, HeapTupleHeader row)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(row),
											  HeapTupleHeaderGetTypMod(row));
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(row),
	.t_data = row};

	state->nresults = desc->natts;
	state->values = palloc(desc->natts * sizeof(Datum));
	state->nulls = palloc(desc->natts * sizeof(bool));
	heap_deform_tuple(&tuple, desc, state->values, state->nulls);
	ReleaseTupleDesc(desc);
}

/* Call the function; its result is kept until the next call. */
static void
call_function(CallScanState *state)
{
	FunctionCallInfo call = state->call;
	MemoryContext caller;

	check_stack_depth();
	ResetExprContext(state->context);
	state->nresults = 0;		/* no row: all columns are null */
	state->values = NULL;
	caller = MemoryContextSwitchTo(state->context->ecxt_per_tuple_memory);
	if (evaluate_args(state))
	{
		PgStat_FunctionCallUsage usage;
		Datum		result;

		call->isnull = false;
		pgstat_init_function_usage(call, &usage);
		result = FunctionCallInvoke(call);
		pgstat_end_function_usage(&usage, true);
		if (state->values == NULL && !call->isnull)
			take_row(state, DatumGetHeapTupleHeader(result));
	}
	MemoryContextSwitchTo(caller);
	state->is_called = true;
}

static TupleTableSlot *
next_row(ScanState *node)
{
	CallScanState *state = (CallScanState *) node;
	TupleTableSlot *slot = node->ss_ScanTupleSlot;
	int			n = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	if (state->is_fetched)
		return slot;
	if (!state->is_called)
		call_function(state);
	state->is_fetched = true;
	for (int i = 0; i < n; i++)
	{
		int			column = state->columns[i] - 1;

		slot->tts_isnull[i] = column >= state->nresults || state->nulls[column];
		slot->tts_values[i] = slot->tts_isnull[i] ? (Datum) 0 :
			state->values[column];
	}
	return ExecStoreVirtualTuple(slot);
}

/* Rows are not locked by columns: see needs_columns_only(). */
static bool
recheck_row(ScanState *node, TupleTableSlot *slot)
{
	elog(ERROR, "a row of an apikeys function cannot be checked again");
}

static TupleTableSlot *
exec_scan(CustomScanState *node)
{
	return ExecScan(&node->ss, next_row, recheck_row);
}

static void
end_scan(CustomScanState *node)
{
}

static void
rescan(CustomScanState *node)
{
	CallScanState *state = (CallScanState *) node;

	ExecScanReScan(&node->ss);
	state->is_fetched = false;
	if (bms_overlap(node->ss.ps.chgParam, state->params))
		state->is_called = false;
}

static void
explain_scan(CustomScanState *node, List *ancestors, ExplainState *es)
{
	CustomScan *scan = (CustomScan *) node->ss.ps.plan;
	FuncExpr   *call = linitial_node(FuncExpr, scan->custom_exprs);

	ExplainPropertyText("Function", get_func_name(call->funcid), es);
}

static const CustomExecMethods exec_methods = {
	.CustomName = "apikeys function",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = exec_scan,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan,
	.ExplainCustomScan = explain_scan,
};

static Node *
create_state(CustomScan *scan)
{
	CallScanState *state = palloc0(sizeof(CallScanState));

	NodeSetTag(state, T_CustomScanState);
	state->scan.methods = &exec_methods;
	return (Node *) state;
}

void
ak_function_scan_install(void)
{
	RegisterCustomScanMethods(&scan_methods);
	prev_set_rel_pathlist = set_rel_pathlist_hook;
	set_rel_pathlist_hook = set_rel_pathlist;
}
