# CREATE EXTENSION says what it needs.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('main', 'shared_preload_libraries' => '');
$node->start;

# ----- Not preloaded -----

$node->safe_psql('postgres', 'CREATE EXTENSION pgcrypto');
my ($ret, $stdout, $stderr) =
  $node->psql('postgres', 'CREATE EXTENSION apikeys');
isnt($ret, 0, 'CREATE EXTENSION fails where the library is not preloaded');
like($stderr, qr/^\S+ ERROR: .*\bloaded\b.*shared_preload_libraries/m,
	'and says why');
like(
	$stderr,
	qr/^HINT: .*postgresql\.conf.*shared_preload_libraries = 'apikeys'/m,
	'and what to write where');
is( $node->safe_psql(
		'postgres', q(
		SELECT (SELECT count(*) FROM pg_extension WHERE extname = 'apikeys'),
		       to_regnamespace('apikeys') IS NULL)),
	'0|t',
	'and leaves nothing behind');

($ret, $stdout, $stderr) = $node->psql('postgres', q(LOAD 'apikeys'));
isnt($ret, 0, 'LOAD fails too');
like($stderr, qr/shared_preload_libraries/, 'and says why');

# Beside others: the line keeps them.
$node->append_conf('postgresql.conf', q(shared_preload_libraries = 'auto_explain'));
$node->restart;
($ret, $stdout, $stderr) = $node->psql('postgres', 'CREATE EXTENSION apikeys');
like($stderr, qr/^HINT: .*shared_preload_libraries = 'auto_explain, apikeys'/m,
	'the line names the libraries that are loaded already');

# ----- Preloaded -----

$node->append_conf('postgresql.conf', q(shared_preload_libraries = 'apikeys'));
$node->restart;

($ret, $stdout, $stderr) = $node->psql(
	'postgres', q(
	CREATE SCHEMA apikeys;
	CREATE EXTENSION apikeys SCHEMA apikeys));
isnt($ret, 0, 'the functions cannot be in the schema of the tables');
like($stderr, qr/^HINT: .*schema/mi, 'a hint says what to do');
is( $node->safe_psql('postgres',
		q(SELECT count(*) FROM pg_extension WHERE extname = 'apikeys')),
	'0',
	'nothing was created');

# A schema of that name that holds something else.
($ret, $stdout, $stderr) = $node->psql('postgres', 'CREATE EXTENSION apikeys');
isnt($ret, 0, 'a schema "apikeys" of somebody else is not taken over');
like($stderr, qr/schema "apikeys"/, 'the message names it');
$node->safe_psql('postgres', 'DROP SCHEMA apikeys');

# Any other schema takes the functions.
$node->safe_psql(
	'postgres', q(
	CREATE SCHEMA "Key functions";
	CREATE EXTENSION apikeys SCHEMA "Key functions"));
is( $node->safe_psql(
		'postgres', q(
		SELECT pronamespace::regnamespace, count(*) > 0 FROM pg_proc
		 WHERE proname LIKE 'apikey\_%' AND pronamespace <> 'apikeys_http'::regnamespace
		 GROUP BY 1)),
	'"Key functions"|t',
	'the functions are where they were asked for');

# Where functions name each other, the names stay.
foreach my $schema ('"Key functions"', 'apikeys')
{
	($ret, $stdout, $stderr) =
	  $node->psql('postgres', "ALTER SCHEMA $schema RENAME TO other");
	like($stderr, qr/schema .* cannot be renamed/, "$schema keeps its name");
}
$node->safe_psql('postgres',
	'CREATE SCHEMA another; ALTER SCHEMA another RENAME TO other; DROP SCHEMA other');
my $secret = $node->safe_psql('postgres',
	q(SELECT api_key FROM "Key functions".apikey_create('key')));
is( $node->safe_psql(
		'postgres', qq(SELECT code FROM "Key functions".apikey_verify('$secret'))
	),
	'VALID',
	'and work there');
is( $node->safe_psql(
		'postgres', q(
		SELECT status FROM apikeys.keys k,
		       LATERAL "Key functions".apikey_delete(k.id))),
	'deleted',
	'those that call others as well');
is( $node->safe_psql(
		'postgres', q(SELECT status FROM apikeys_http.apikey_create('wrapped'))),
	'active',
	'and those for HTTP');

# Every object is documented, and nothing is for everybody.
is( $node->safe_psql(
		'postgres', q(
		SELECT d.classid::regclass, pg_describe_object(d.classid, d.objid, 0)
		  FROM pg_depend d
		 WHERE d.deptype = 'e'
		   AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'apikeys')
		   AND d.refclassid = 'pg_extension'::regclass
		   AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass,
		                     'pg_namespace'::regclass)
		   AND obj_description(d.objid, d.classid::regclass::name) IS NULL)),
	'',
	'every function, table, view and schema has a comment');
is( $node->safe_psql(
		'postgres', q(
		SELECT p.oid::regprocedure
		  FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
		 WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
		   AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'apikeys')
		   AND has_function_privilege('public', p.oid, 'EXECUTE'))),
	'',
	'no function is executable by everybody');

# Nor for those to whom new objects of who installs are granted by themselves,
# as hosts of PostgreSQL set it up.
$node->safe_psql(
	'postgres', q(
	CREATE DATABASE hosted;
	CREATE ROLE anon));
$node->safe_psql(
	'hosted', q(
	ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon, PUBLIC;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO anon WITH GRANT OPTION));
install($node, 'hosted');
$node->safe_psql('hosted', q(SELECT apikey_verify(api_key) FROM apikey_create('key')));
ok(flushed($node, 'hosted', 1), 'the worker has made partitions');
my $granted = q(
	SELECT string_agg(DISTINCT concat_ws(' ', o.name, a.grantee::regrole), ', ')
	  FROM (SELECT p.oid::regprocedure::text, p.proacl, p.proowner FROM pg_proc p
	         WHERE p.pronamespace IN ('public'::regnamespace, 'apikeys'::regnamespace, 'apikeys_http'::regnamespace)
	           AND p.probin IS DISTINCT FROM '$libdir/pgcrypto'
	        UNION ALL
	        SELECT c.oid::regclass::text, c.relacl, c.relowner FROM pg_class c
	         WHERE c.relnamespace = 'apikeys'::regnamespace
	        UNION ALL
	        SELECT n.nspname, n.nspacl, n.nspowner FROM pg_namespace n
	         WHERE n.nspname LIKE 'apikeys%') o(name, acl, owner),
	       aclexplode(o.acl) a
	 WHERE a.grantee <> o.owner);
is($node->safe_psql('hosted', $granted), '', 'default privileges grant nothing of the extension');
$node->safe_psql('hosted', q(GRANT SELECT ON apikeys.keys TO anon));
is($node->safe_psql('hosted', $granted), 'apikeys.keys anon', 'GRANT does');

$node->safe_psql('postgres', 'DROP EXTENSION apikeys');
is( $node->safe_psql(
		'postgres', q(
		SELECT to_regnamespace('apikeys') IS NULL,
		       (SELECT count(*) FROM pg_proc WHERE proname LIKE 'apikey\_%'))),
	't|0',
	'DROP EXTENSION leaves nothing behind');

# A setting that does not exist is noticed.
($ret, $stdout, $stderr) =
  $node->psql('postgres', q(SET apikeys.no_such_setting = 1));
isnt($ret, 0, 'an unknown setting is refused');

$node->stop;
done_testing();
