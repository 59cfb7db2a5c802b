-- An example of an API whose tenants see only what is theirs, by their keys:
-- PostgREST shows the schema "api", apikey_authenticate() verifies the key of
-- each request, and row security asks who is calling.

\set ON_ERROR_STOP on

-- Who PostgREST connects as, who a request is without a key, and with one.
CREATE ROLE authenticator LOGIN NOINHERIT;
CREATE ROLE web_anon;
CREATE ROLE web_tenant;
GRANT web_anon, web_tenant TO authenticator;
SELECT apikey_grant('web_anon', 'verifier');
SELECT apikey_grant('web_tenant', 'application');

CREATE SCHEMA api;
COMMENT ON SCHEMA api IS E'Notes\nA note belongs to the user whose key wrote it.';
GRANT USAGE ON SCHEMA api TO web_anon, web_tenant;

CREATE TABLE api.notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner text NOT NULL DEFAULT apikey_current_user(),
    body text NOT NULL
);
CREATE INDEX ON api.notes (owner);
ALTER TABLE api.notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON api.notes USING (owner = apikey_current_user());
GRANT SELECT, INSERT, UPDATE, DELETE ON api.notes TO web_tenant;

-- Requests with a key of this plan run as web_tenant.
SELECT apikey_plan_create('Tenant', 1000, 'day', plan_id => 'tenant', http_role => 'web_tenant');
