/*-------------------------------------------------------------------------
 *
 * load_dump.c
 *	  Let a dump be loaded in any order.
 *
 * The foreign keys between our tables are there before the rows of a dump are,
 * since they come with CREATE EXTENSION.  pg_dump orders the tables by them, but
 * "pg_restore -j" does not: it would load users before their plans.  So a COPY
 * of a dump runs as with session_replication_role = replica: references are not
 * checked again, and triggers that are not ENABLE ALWAYS, which change nothing
 * in a row that was stored before, do not fire.
 *
 * A session that loads a dump has turned check_function_bodies off, as all that
 * pg_dump and pg_restore write does, and row_security.  Only a superuser's is
 * taken for one, who could set session_replication_role as well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/guc.h"
#include "utils/rls.h"

#include "apikeys.h"

static bool
is_our_table(const RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);
	Oid			extension = get_extension_oid("apikeys", true);

	return OidIsValid(relid) && OidIsValid(extension) &&
		getExtensionOfObject(RelationRelationId, relid) == extension;
}

/* Whether a statement loads rows of a dump into a table of ours. */
bool
ak_loads_dump(const Node *node)
{
	const CopyStmt *stmt = (const CopyStmt *) node;

	return IsA(node, CopyStmt) && stmt->is_from && stmt->relation != NULL &&
		!check_function_bodies && !row_security &&
		IsTransactionState() && superuser() && is_our_table(stmt->relation);
}

/*
 * Have references of what is loaded not checked.  The caller ends it with
 * AtEOXact_GUC(true, result); an abort does it too.
 */
int
ak_load_dump(void)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("session_replication_role", "replica",
							 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	return level;
}
