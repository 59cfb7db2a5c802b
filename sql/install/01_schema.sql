-- apikeys: issue, verify, meter and rate-limit API keys inside the database.
--
-- The install script is made by joining sql/install/NN_*.sql in order.
-- Everything but the apikey_* functions lives in the schema "apikeys", which
-- the extension owns; the functions go to the schema of CREATE EXTENSION.

\echo Use "CREATE EXTENSION apikeys CASCADE" to load this file. \quit

-- This runs with the rights of who installs, and what it finds by name stays in
-- views and constraints: only PostgreSQL's own functions, operators and types,
-- not those that somebody has put into the target schema. All else is qualified.
SET LOCAL search_path = pg_catalog, pg_temp;

-- The first C function loads the library, which refuses to be loaded unless
-- shared_preload_libraries names it: nothing is created without its meter.

CREATE SCHEMA apikeys;
COMMENT ON SCHEMA apikeys IS 'API keys: tables, views and types of the extension apikeys';

CREATE FUNCTION apikeys.uuidv7() RETURNS uuid
LANGUAGE c VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_uuidv7';
COMMENT ON FUNCTION apikeys.uuidv7() IS
'Make a time-ordered uuid (version 7).
Those made by one backend ascend, also within a millisecond.';
REVOKE EXECUTE ON FUNCTION apikeys.uuidv7() FROM PUBLIC;
