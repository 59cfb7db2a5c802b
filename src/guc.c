/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "http.h"

char	   *ak_default_prefix;
int			ak_max_tracked_keys;
int			ak_max_databases;
int			ak_history_buffer;
int			ak_flush_interval;
bool		ak_history;
int			ak_history_overflow;
int			ak_history_wait_timeout;
int			ak_history_retention;
int			ak_rollup_retention;
int			ak_meter_timeout;
int			ak_crash_slack;
int			ak_max_reservations;
int			ak_expired_key_grace;
int			ak_sweep_interval;
int			ak_worker_idle_timeout;
int			ak_last_used_interval;
int			ak_request_id_window;
bool		ak_redact_log;
char	   *ak_http_header;
char	   *ak_http_api;
char	   *ak_http_public_paths;
char	   *ak_trusted_proxies;
bool		ak_legacy_rate_headers;

static const struct config_enum_entry overflow_options[] = {
	{"wait", AK_OVERFLOW_WAIT, false},
	{"drop", AK_OVERFLOW_DROP, false},
	{NULL, 0, false}
};

static bool
check_default_prefix(char **newval, void **extra, GucSource source)
{
	if (ak_prefix_is_valid(*newval))
		return true;
	GUC_check_errdetail("A prefix is 1 to %d letters, digits or underscores.",
						AK_PREFIX_MAX);
	return false;
}

static bool
check_http_header(char **newval, void **extra, GucSource source)
{
	Size		length = strspn(*newval, "abcdefghijklmnopqrstuvwxyz"
								"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");

	if (length > 0 && (*newval)[length] == '\0')
		return true;
	GUC_check_errdetail("A header's name is made of letters, digits, \"-\" and \"_\".");
	return false;
}

static bool
check_trusted_proxies(char **newval, void **extra, GucSource source)
{
	if (ak_addresses_are_valid(*newval))
		return true;
	GUC_check_errdetail("The value is a list of IP addresses and networks.");
	return false;
}

void
ak_define_settings(void)
{
	DefineCustomStringVariable("apikeys.default_prefix",
							   "Prefix of new secrets where neither the call nor the api gives one.",
							   NULL,
							   &ak_default_prefix, "ak",
							   PGC_USERSET, 0,
							   check_default_prefix, NULL, NULL);
	DefineCustomIntVariable("apikeys.max_tracked_keys",
							"How many counts (a key or user, in a period, with one rate) the meter holds at once.",
							"Idle ones beyond it are evicted and read back from apikeys.usage.",
							&ak_max_tracked_keys, 100000, 1000, 100000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.max_databases",
							"How many databases of the server can verify keys.",
							NULL,
							&ak_max_databases, 32, 1, 1000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.history_buffer",
							"Shared memory for history that is not yet in apikeys.requests.",
							NULL,
							&ak_history_buffer, 16 * 1024, 1024, 16 * 1024 * 1024,
							PGC_POSTMASTER, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.flush_interval",
							"How often the worker makes counts and history durable.",
							NULL,
							&ak_flush_interval, 1000, 10, 60000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomBoolVariable("apikeys.history",
							 "Records each verification of a known key in apikeys.requests.",
							 NULL,
							 &ak_history, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("apikeys.history_overflow",
							 "What a verification does when the history buffer is full.",
							 "It waits (at most apikeys.history_wait_timeout), or drops its record at once; what is dropped is counted in apikeys.stats.",
							 &ak_history_overflow, AK_OVERFLOW_WAIT, overflow_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.history_wait_timeout",
							"How long a verification waits for room in the history buffer.",
							NULL,
							&ak_history_wait_timeout, 1000, 0, 600000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.history_retention",
							"How long history is kept; 0 keeps it for ever.",
							"Whole days are dropped, in UTC.",
							&ak_history_retention, 90 * MINS_PER_HOUR * HOURS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.rollup_retention",
							"How long the hourly rows of apikeys.rollups are kept; 0 keeps them for ever.",
							"Daily rows are kept for ever.",
							&ak_rollup_retention, 90 * MINS_PER_HOUR * HOURS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.meter_timeout",
							"How long a verification waits for the worker before it fails.",
							NULL,
							&ak_meter_timeout, 5000, 100, 600000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.crash_slack",
							"How many requests of a key a crash may forget.",
							"0 never admits more than a limit allows, whatever happens; more waits less for the disk where limits are small.",
							&ak_crash_slack, 0, 0, 1000000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.max_reservations",
							"How many reservations can be held at once, in all databases.",
							NULL,
							&ak_max_reservations, 2000, 10, 10000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.expired_key_grace",
							"How long after its expiry a key is marked as deleted.",
							"It is refused from its expiry on, whatever this says.",
							&ak_expired_key_grace, 7 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.sweep_interval",
							"How often each database is swept for expired keys and old history.",
							NULL,
							&ak_sweep_interval, 60, 1, SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.worker_idle_timeout",
							"How long a worker stays in a database where nothing is verified.",
							NULL,
							&ak_worker_idle_timeout, 60, 1, SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.last_used_interval",
							"How exact apikeys.keys.last_used_at is.",
							NULL,
							&ak_last_used_interval, 60, 0, SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("apikeys.request_id_window",
							"How long a request_id is remembered, so that it is charged once.",
							NULL,
							&ak_request_id_window, SECS_PER_DAY, 1, 30 * SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomBoolVariable("apikeys.redact_log",
							 "Masks secrets in the server log and in the statements that others see.",
							 NULL,
							 &ak_redact_log, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("apikeys.http_header",
							   "Header of an HTTP request that holds the API key.",
							   NULL,
							   &ak_http_header, "x-api-key",
							   PGC_SUSET, 0,
							   check_http_header, NULL, NULL);
	DefineCustomStringVariable("apikeys.http_api",
							   "The api whose keys are accepted over HTTP; empty accepts those of any.",
							   NULL,
							   &ak_http_api, "default",
							   PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("apikeys.http_public_paths",
							   "Paths that apikey_authenticate lets pass without a key.",
							   "They are compared as a whole, and run as the role they came with.",
							   &ak_http_public_paths, "/rpc/apikey_check",
							   PGC_SUSET, GUC_LIST_INPUT, NULL, NULL, NULL);
	DefineCustomStringVariable("apikeys.trusted_proxies",
							   "Proxies whose word about the client's address is taken.",
							   "Empty: X-Forwarded-For is ignored. Else whatever reaches PostgREST must come through one of them.",
							   &ak_trusted_proxies, "",
							   PGC_SUSET, GUC_LIST_INPUT,
							   check_trusted_proxies, NULL, NULL);
	DefineCustomBoolVariable("apikeys.legacy_rate_headers",
							 "Sends X-RateLimit-* headers too.",
							 NULL,
							 &ak_legacy_rate_headers, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("apikeys");
}
