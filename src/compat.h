/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between the versions of the server and of OpenSSL that apikeys
 *	  is built for.  The only file with conditions on them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_COMPAT_H
#define APIKEYS_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "apikeys needs PostgreSQL 15 or later"
#endif

/* 18 tells the caller how often an index was searched. */
#if PG_VERSION_NUM >= 180000
#define ak_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define ak_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* 16 calls it by what it is. */
#if PG_VERSION_NUM >= 160000
#define ak_file_of(rel) ((rel)->rd_locator)
#else
#define ak_file_of(rel) ((rel)->rd_node)
#endif

/* 16 has one function for all kinds of objects. */
#if PG_VERSION_NUM >= 160000
#define ak_owns_database(dboid, role) \
	object_ownercheck(DatabaseRelationId, dboid, role)
#define ak_may_execute(function, role) \
	object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE)
#else
#define ak_owns_database(dboid, role) pg_database_ownercheck(dboid, role)
#define ak_may_execute(function, role) \
	pg_proc_aclcheck(function, role, ACL_EXECUTE)
#endif

/* 16 tells who may set a role from who inherits it. */
#if PG_VERSION_NUM >= 160000
#define ak_may_set_role(member, role) member_can_set_role(member, role)
#else
#define ak_may_set_role(member, role) is_member_of_role(member, role)
#endif

/* 16 keeps permissions apart from the range table, 18 what was not pruned. */
#if PG_VERSION_NUM >= 180000
#define ak_init_range_table(estate, pstate) \
	ExecInitRangeTable(estate, (pstate)->p_rtable, (pstate)->p_rteperminfos, \
					   bms_make_singleton(1))
#elif PG_VERSION_NUM >= 160000
#define ak_init_range_table(estate, pstate) \
	ExecInitRangeTable(estate, (pstate)->p_rtable, (pstate)->p_rteperminfos)
#else
#define ak_init_range_table(estate, pstate) \
	ExecInitRangeTable(estate, (pstate)->p_rtable)
#endif

/* 16 makes the map when it is asked for. */
#if PG_VERSION_NUM >= 160000
#define ak_root_to_child_map(relation, estate) \
	ExecGetRootToChildMap(relation, estate)
#else
#define ak_root_to_child_map(relation, estate) \
	((relation)->ri_RootToPartitionMap)
#endif

/* 16 asks whether only summarizing indexes are concerned. */
#if PG_VERSION_NUM >= 160000
#define ak_insert_index_tuples(relation, slot, estate) \
	ExecInsertIndexTuples(relation, slot, estate, false, false, NULL, NIL, false)
#else
#define ak_insert_index_tuples(relation, slot, estate) \
	ExecInsertIndexTuples(relation, slot, estate, false, false, NULL, NIL)
#endif

/* 17 lets an extension name what it waits for. */
#if PG_VERSION_NUM >= 170000
#define ak_wait_event(name) WaitEventExtensionNew(name)
#else
#define ak_wait_event(name) PG_WAIT_EXTENSION
#endif

/* 17 can end a session whose transaction takes long. */
#if PG_VERSION_NUM >= 170000
#define AK_NO_TRANSACTION_TIMEOUT {"transaction_timeout", "0"},
#else
#define AK_NO_TRANSACTION_TIMEOUT
#endif

/* 18 has C11's word, which stands before the declaration. */
#if PG_VERSION_NUM >= 180000
#define ak_noreturn pg_noreturn
#else
#define ak_noreturn pg_attribute_noreturn()
#endif

/* 18 has the printing of properties in a header of its own. */
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#else
#include "commands/explain.h"
#endif

/* OpenSSL 3 finds an algorithm once for all its uses, if it is asked to. */
#ifdef USE_OPENSSL
#include <openssl/opensslv.h>
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
#define AK_OPENSSL_FETCHES
#endif
#endif

#endif							/* APIKEYS_COMPAT_H */
