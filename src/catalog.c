/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  The extension's own tables, indexes and columns, by OID.
 *
 * Resolved by name once a backend, and again after an invalidation of any of
 * them: DROP EXTENSION, REINDEX CONCURRENTLY and the like, and the update of the
 * extension, after which the library may be too old.  The same callback
 * drops the plans, users, apis and roles that remember.c keeps: the tables'
 * triggers send an invalidation with each change, which reaches the backend's
 * own later commands, every other backend at commit (of a prepared transaction
 * too), and standbys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "apikeys.h"

static AkCatalog catalog;
static bool resolved = false;
static uint64 changes = 1;		/* of plans, users, apis, limits and roles */

static const char *const key_columns[AK_KEY_COLUMNS] = {
	[AK_KEY_ID] = "id",
	[AK_KEY_API_ID] = "api_id",
	[AK_KEY_NAME] = "name",
	[AK_KEY_USER_ID] = "user_id",
	[AK_KEY_PLAN_ID] = "plan_id",
	[AK_KEY_ENABLED] = "enabled",
	[AK_KEY_DIGEST] = "digest",
	[AK_KEY_PREVIOUS_DIGEST] = "previous_digest",
	[AK_KEY_PREVIOUS_EXPIRES_AT] = "previous_expires_at",
	[AK_KEY_PERMISSIONS] = "permissions",
	[AK_KEY_ALLOWED_IPS] = "allowed_ips",
	[AK_KEY_METADATA] = "metadata",
	[AK_KEY_EXPIRES_AT] = "expires_at",
	[AK_KEY_CREATED_AT] = "created_at",
	[AK_KEY_UPDATED_AT] = "updated_at",
	[AK_KEY_DELETED_AT] = "deleted_at",
	[AK_KEY_HAS_LIMITS] = "has_limits",
	[AK_KEY_ROLES] = "roles",
	[AK_KEY_CREDITS] = "credits",
	[AK_KEY_REFILL_AMOUNT] = "refill_amount",
	[AK_KEY_REFILL_EVERY] = "refill_every",
	[AK_KEY_REFILL_DAY] = "refill_day",
	[AK_KEY_REFILL_SINCE] = "refill_since",
	[AK_KEY_FENCED_AT] = "fenced_at",
};

/* The relations by name, and where their OIDs go. */
static const struct
{
	const char *name;
	Oid		   *oid;
	bool		is_remembered;	/* backends remember rows of it */
}			relations[] = {
	{"keys", &catalog.keys},
	{"keys_digest_key", &catalog.keys_digest_key},
	{"keys_previous_digest_key", &catalog.keys_previous_digest_key},
	{"keys_pkey", &catalog.keys_pkey},
	{"keys_user_id_idx", &catalog.keys_user_id_idx},
	{"plans", &catalog.plans, true},
	{"plans_pkey", &catalog.plans_pkey},
	{"users", &catalog.users, true},
	{"users_pkey", &catalog.users_pkey},
	{"apis", &catalog.apis, true},
	{"apis_pkey", &catalog.apis_pkey},
	{"roles", &catalog.roles, true},
	{"roles_pkey", &catalog.roles_pkey},
	{"usage", &catalog.usage},
	{"usage_pkey", &catalog.usage_pkey},
	{"incarnations", &catalog.incarnations},
	{"incarnations_pkey", &catalog.incarnations_pkey},
	{"limits", &catalog.limits, true},
	{"limits_plan_id_key", &catalog.limits_plan_id_key},
	{"limits_user_id_key", &catalog.limits_user_id_key},
	{"limits_key_id_key", &catalog.limits_key_id_key},
	{"rate_marks", &catalog.rate_marks},
	{"rate_marks_pkey", &catalog.rate_marks_pkey},
	{"requests", &catalog.requests},
	{"request_ids", &catalog.request_ids},
	{"request_ids_pkey", &catalog.request_ids_pkey},
};

/* Runs while invalidations are processed: only flags may be set here. */
static void
relcache_callback(Datum arg, Oid relid)
{
	for (int i = 0; i < lengthof(relations); i++)
		if (!OidIsValid(relid) || relid == *relations[i].oid)
		{
			resolved = false;
			if (relations[i].is_remembered)
				changes++;
		}
}

/* The version of the SQL objects must be the library's. */
static void
check_version(Oid extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&scankey, Anum_pg_extension_oid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1,
							  &scankey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	if (version == NULL || strcmp(version, AK_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("library and SQL objects of \"apikeys\" differ in version"),
				 errdetail("The library is %s, the objects in this database are %s.",
						   AK_VERSION, version ? version : "missing"),
				 errhint("Run ALTER EXTENSION apikeys UPDATE, or restart the server after installing a new version.")));
}

/* The schema of the functions, or InvalidOid if they are not installed. */
Oid
ak_functions_schema(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	Oid			schema = InvalidOid;
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&scankey, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("apikeys"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1,
							  &scankey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

static Oid
relation_oid(const char *name, Oid namespace)
{
	Oid			relid = get_relname_relid(name, namespace);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("relation \"apikeys.%s\" does not exist", name),
				 errhint("The extension \"apikeys\" is damaged: drop and create it, or restore the relation.")));
	return relid;
}

static void
resolve(Oid extension)
{
	Oid			schema = get_namespace_oid("apikeys", false);

	if (getExtensionOfObject(NamespaceRelationId, schema) != extension)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_SCHEMA_NAME),
				 errmsg("schema \"apikeys\" does not belong to the extension \"apikeys\"")));
	check_version(extension);

	for (int i = 0; i < lengthof(relations); i++)
		*relations[i].oid = relation_oid(relations[i].name, schema);
	for (int i = 0; i < AK_KEY_COLUMNS; i++)
	{
		catalog.keys_attnum[i] = get_attnum(catalog.keys, key_columns[i]);
		if (catalog.keys_attnum[i] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"apikeys.keys\" does not exist",
							key_columns[i])));
	}

	catalog.db = ak_database_acquire(MyDatabaseId, extension);
	catalog.generation = catalog.db->generation;
	if (catalog.extension != extension)
		changes++;
	catalog.extension = extension;
}

static void
catalog_resolve(void)
{
	static bool registered = false;
	Oid			extension;

	/* The slot may have been taken back, and given to another database. */
	if (likely(resolved && catalog.db->generation == catalog.generation))
		return;
	resolved = false;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		registered = true;
	}
	extension = get_extension_oid("apikeys", false);

	/* An invalidation that comes while names are looked up counts. */
	resolved = true;
	PG_TRY();
	{
		resolve(extension);
	}
	PG_CATCH();
	{
		resolved = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * The extension's objects in this database.  The caller has accepted
 * invalidations.  Errors: 42704 if it is not installed, 55000 if its version
 * is not the library's, 53400 if too many databases use it.
 */
const AkCatalog *
ak_catalog(void)
{
	catalog_resolve();
	return &catalog;
}

/*
 * Whether the database's installation of the extension is still this one.  Asks
 * for no slot: another installation may get one only after this one's is given
 * back.
 */
bool
ak_catalog_is(Oid extension)
{
	if (resolved && catalog.db->generation == catalog.generation)
		return catalog.extension == extension;
	return get_extension_oid("apikeys", true) == extension;
}

/* Changes when a plan, user, api, limit or role may have. */
uint64
ak_catalog_changes(void)
{
	return changes;
}

/* Tell every backend that a table of ours has changed, at commit. */
void
ak_catalog_announce(Oid relid)
{
	CacheInvalidateRelcacheByRelid(relid);
}

/*
 * The extension may have been updated, in this transaction.  Nothing else need
 * tell: an update may leave the tables alone.  At commit every session, here
 * and on standbys, looks whether its library still fits.
 */
void
ak_catalog_updated(void)
{
	Oid			schema = get_namespace_oid("apikeys", true);
	Oid			keys = OidIsValid(schema) ?
		get_relname_relid("keys", schema) : InvalidOid;

	if (OidIsValid(keys))
		CacheInvalidateRelcacheByRelid(keys);
}
