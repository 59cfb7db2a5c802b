-- For whatever fragment forgot: EXECUTE is the gate.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys_http FROM PUBLIC;

-- PostgREST learns of the functions.
NOTIFY pgrst, 'reload schema';
