/*-------------------------------------------------------------------------
 *
 * apikeys.c
 *	  Load the library; hooks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "apikeys.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;
static ProcessUtility_hook_type prev_process_utility = NULL;

static void
shmem_request(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	ak_shmem_request();
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup)
		prev_shmem_startup();
	ak_shmem_startup();
}

/*
 * The schema "apikeys" is the extension's own; its functions go to another.
 */
static void
check_create_extension(const CreateExtensionStmt *stmt)
{
	ListCell   *lc;

	if (strcmp(stmt->extname, "apikeys") != 0)
		return;
	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "schema") == 0 &&
			strcmp(defGetString(option), "apikeys") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_SCHEMA_NAME),
					 errmsg("extension \"apikeys\" cannot be installed in schema \"apikeys\""),
					 errdetail("The extension makes that schema itself, for its tables."),
					 errhint("Name the schema for the apikey_* functions, or leave SCHEMA out.")));
	}
}

/*
 * Functions name both schemas, some with their owner's rights: under the old name
 * they would find what somebody else puts there.
 */
static void
check_rename(const RenameStmt *stmt)
{
	Oid			functions;

	if (stmt->renameType != OBJECT_SCHEMA)
		return;
	functions = ak_functions_schema();
	if (OidIsValid(functions) &&
		(strcmp(stmt->subname, "apikeys") == 0 ||
		 get_namespace_oid(stmt->subname, true) == functions))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("schema \"%s\" cannot be renamed", stmt->subname),
				 errdetail("Functions of extension \"apikeys\" call each other by its name.")));
}

static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		may = false;

	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may || superuser();
}

/* A worker steps aside only for who may do what needs it. */
static bool
may_empty(Node *stmt, Oid dboid)
{
	return IsA(stmt, CreatedbStmt) ? may_create_databases() :
		ak_owns_database(dboid, GetUserId());
}

/*
 * ALTER EXTENSION apikeys UPDATE, by who may run it.  The worker leaves first:
 * all counts are written by the library that made them, and it holds no lock
 * that the script needs.
 */
static bool
is_update(Node *stmt)
{
	return IsA(stmt, AlterExtensionStmt) &&
		strcmp(((AlterExtensionStmt *) stmt)->extname, "apikeys") == 0 &&
		superuser();
}

/*
 * The database that a command needs for itself, or InvalidOid.  A worker that
 * steps aside for a command that then fails comes back.
 */
static Oid
database_to_empty(Node *stmt)
{
	const char *name = NULL;

	if (is_update(stmt))
		return MyDatabaseId;
	if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, RenameStmt) &&
			 ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) stmt)->subname;
	else if (IsA(stmt, CreatedbStmt))
	{
		ListCell   *lc;

		name = "template1";
		foreach(lc, ((CreatedbStmt *) stmt)->options)
		{
			DefElem    *option = lfirst(lc);

			if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
				name = defGetString(option);
		}
	}
	else if (IsA(stmt, AlterDatabaseStmt))
	{
		ListCell   *lc;

		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				name = ((AlterDatabaseStmt *) stmt)->dbname;
	}
	if (name != NULL)
	{
		Oid			dboid = get_database_oid(name, true);

		if (OidIsValid(dboid) && may_empty(stmt, dboid))
			return dboid;
	}
	return InvalidOid;
}

static void
next_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = prev_process_utility ?
		prev_process_utility : standard_ProcessUtility;

	next(pstmt, query, read_only_tree, context, params, env, dest, qc);
}

static void
done_alone(Node *stmt, Oid dboid)
{
	if (IsA(stmt, DropdbStmt))
		ak_database_forget(dboid, InvalidOid);
	else if (IsA(stmt, AlterExtensionStmt))
		ak_catalog_updated();
}

static void
let_worker_back(int code, Datum arg)
{
	ak_database_unhold();
}

/*
 * Run a command that needs a database for itself, while its worker is away.  It
 * comes back also if the session is ended: others wait for it.
 */
static void
run_alone(Oid dboid, PlannedStmt *pstmt, const char *query,
		  bool read_only_tree, ProcessUtilityContext context,
		  ParamListInfo params, QueryEnvironment *env, DestReceiver *dest,
		  QueryCompletion *qc)
{
	PG_ENSURE_ERROR_CLEANUP(let_worker_back, (Datum) 0);
	{
		ak_database_hold(dboid);
		next_utility(pstmt, query, read_only_tree, context, params, env, dest,
					 qc);
		done_alone(pstmt->utilityStmt, dboid);
	}
	PG_END_ENSURE_ERROR_CLEANUP(let_worker_back, (Datum) 0);
	ak_database_unhold();
}

static void
run_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	Oid			dboid = InvalidOid;

	if (IsA(stmt, CreateExtensionStmt))
		check_create_extension((CreateExtensionStmt *) stmt);
	else if (IsA(stmt, RenameStmt) && IsTransactionState())
		check_rename((RenameStmt *) stmt);

	if (!RecoveryInProgress() && IsTransactionState())
		dboid = database_to_empty(stmt);

	if (ak_loads_dump(stmt))
	{
		int			level = ak_load_dump();

		next_utility(pstmt, query, read_only_tree, context, params, env, dest,
					 qc);
		AtEOXact_GUC(true, level);
	}
	else if (OidIsValid(dboid))
		run_alone(dboid, pstmt, query, read_only_tree, context, params, env,
				  dest, qc);
	else
		next_utility(pstmt, query, read_only_tree, context, params, env, dest,
					 qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	run_utility(pstmt, ak_redact_utility(pstmt, query), read_only_tree,
				context, params, env, dest, qc);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
	{
		const char *others = GetConfigOption("shared_preload_libraries", true,
											 false);
		bool		alone = others == NULL || others[0] == '\0';

		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("apikeys must be loaded by shared_preload_libraries"),
				 errhint("Put this line into postgresql.conf and restart the server: shared_preload_libraries = '%s%sapikeys'",
						 alone ? "" : others, alone ? "" : ", ")));
	}

	ak_define_settings();

	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;

	ak_redact_install();
	ak_activity_install();
	ak_function_scan_install();

	/* pg_upgrade wants no process of ours in its servers. */
	if (!IsBinaryUpgrade)
		ak_launcher_register();
}
