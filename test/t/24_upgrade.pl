# ALTER EXTENSION apikeys UPDATE from every released version leaves behind what
# a fresh installation makes, and a library that does not fit says so.
#
# Releases are in sql/upgrade. So that the way is tested before there are two,
# a next version is made up, built, and installed into a copy of PostgreSQL:
# PostgreSQL finds its files from where the program is.

use strict;
use warnings FATAL => 'all';

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use UpgradeTest;

my $root = abs_path("$FindBin::RealBin/../..");
my ($version) =
  slurp_file("$root/apikeys.control") =~ /^default_version = '(.*)'/m;

# Creates the extension, updates it to the newest, in a database of its own.
sub updated
{
	my ($node, $database, $from, $schema) = @_;
	$schema = 'public' unless defined $schema;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database,
		"SET client_min_messages = warning;
		CREATE SCHEMA IF NOT EXISTS $schema;
		CREATE EXTENSION apikeys SCHEMA $schema VERSION '$from' CASCADE;
		ALTER EXTENSION apikeys UPDATE");
	return;
}

# ----- What is said of the version -----

my ($library) =
  slurp_file("$root/src/apikeys.h") =~ /^#define AK_VERSION "(.*)"/m;
is($library, $version, 'library and control file have one version');

# ----- The comparison sees a difference -----

my $node = new_server('main');
$node->start;
install($node);
my $fresh = catalog($node, 'postgres');
cmp_ok(scalar(keys %$fresh), '>', 3000, 'the catalogs say much');
same_catalog($fresh, catalog($node, 'postgres'), 'the same twice');

my %changes = (
	'function apikeys.uuidv7(), comment' =>
	  'COMMENT ON FUNCTION apikeys.uuidv7() IS NULL',
	'member function apikeys.uuidv7(), comment' =>
	  q(COMMENT ON FUNCTION apikeys.uuidv7() IS 'Another'),
	'function apikeys.uuidv7(), privileges' =>
	  'GRANT EXECUTE ON FUNCTION apikeys.uuidv7() TO PUBLIC',
	'function apikeys.uuidv7(), definition' =>
	  'ALTER FUNCTION apikeys.uuidv7() STABLE',
	'function public.apikey_grant(text,text), definition' =>
	  'ALTER FUNCTION apikey_grant RESET search_path',
	'function public.apikey_get(uuid), definition' =>
	  'ALTER FUNCTION apikey_get SECURITY INVOKER',
	'function apikeys_http.apikey_metrics(), definition' =>
	  'ALTER FUNCTION apikeys_http.apikey_metrics() COST 7',
	'function apikeys.uuidv7(), owner' =>
	  'CREATE ROLE other; ALTER FUNCTION apikeys.uuidv7() OWNER TO other',
	'member function apikeys.uuidv7(), comment ' =>
	  'ALTER EXTENSION apikeys DROP FUNCTION apikeys.uuidv7()',
	'function apikeys.stranger(), definition' =>
	  'CREATE FUNCTION apikeys.stranger() RETURNS int LANGUAGE sql RETURN 1',
	'relation apikeys.plans, comment' => 'COMMENT ON TABLE apikeys.plans IS NULL',
	'relation apikeys.plans, privileges' =>
	  'GRANT SELECT ON apikeys.plans TO PUBLIC',
	'relation apikeys.plans, options' =>
	  'ALTER TABLE apikeys.plans SET (fillfactor = 51)',
	'relation apikeys.plans, row security' =>
	  'ALTER TABLE apikeys.plans ENABLE ROW LEVEL SECURITY',
	'relation apikeys.plans, replica identity' =>
	  'ALTER TABLE apikeys.plans REPLICA IDENTITY FULL',
	'relation apikeys.live_usage, options' =>
	  'ALTER VIEW apikeys.live_usage SET (security_barrier)',
	'relation apikeys.stats, view' =>
	  'ALTER TABLE apikeys.stats RENAME COLUMN value TO other',
	'column apikeys.plans.name, default' =>
	  q(ALTER TABLE apikeys.plans ALTER name SET DEFAULT 'x'),
	'column apikeys.plans.name, not null' =>
	  'ALTER TABLE apikeys.plans ALTER name DROP NOT NULL',
	'column apikeys.plans.name, comment' =>
	  'COMMENT ON COLUMN apikeys.plans.name IS NULL',
	'column apikeys.plans.name, privileges' =>
	  'GRANT SELECT (name) ON apikeys.plans TO PUBLIC',
	'column apikeys.plans.name, storage' =>
	  'ALTER TABLE apikeys.plans ALTER name SET STORAGE external',
	'column apikeys.plans.name, statistics' =>
	  'ALTER TABLE apikeys.plans ALTER name SET STATISTICS 7',
	'column apikeys.plans.name, options' =>
	  'ALTER TABLE apikeys.plans ALTER name SET (n_distinct = 7)',
	'column apikeys.erasures.noticed_at, type' =>
	  'ALTER TABLE apikeys.erasures ALTER noticed_at TYPE timestamptz(3)',
	'column apikeys.plans.other, type' =>
	  'ALTER TABLE apikeys.plans ADD other int',
	'column apikeys.erasures.noticed_at, place' => q(
		ALTER TABLE apikeys.erasures DROP erased_at;
		ALTER TABLE apikeys.erasures ADD erased_at timestamptz NOT NULL DEFAULT now()),
	'constraint plans_pkey on apikeys.plans, comment' =>
	  q(COMMENT ON CONSTRAINT plans_pkey ON apikeys.plans IS 'x'),
	'constraint other on apikeys.plans, definition' =>
	  'ALTER TABLE apikeys.plans ADD CONSTRAINT other CHECK (true)',
	'constraint other on apikeys.plans, validated' =>
	  'ALTER TABLE apikeys.plans ADD CONSTRAINT other CHECK (true) NOT VALID',
	'index apikeys.keys_user_id_idx on apikeys.keys, definition' =>
	  'DROP INDEX apikeys.keys_user_id_idx',
	'index apikeys.keys_pkey on apikeys.keys, clustered' =>
	  'ALTER TABLE apikeys.keys CLUSTER ON keys_pkey',
	'index apikeys.keys_user_id_idx on apikeys.keys, comment' =>
	  q(COMMENT ON INDEX apikeys.keys_user_id_idx IS 'x'),
	'trigger announce_change on apikeys.keys, enabled' =>
	  'ALTER TABLE apikeys.keys ENABLE TRIGGER announce_change',
	'trigger announce_change on apikeys.keys, comment' =>
	  'COMMENT ON TRIGGER announce_change ON apikeys.keys IS NULL',
	'trigger announce_change on apikeys.keys, definition' =>
	  'DROP TRIGGER announce_change ON apikeys.keys',
	'policy other on apikeys.plans, using' =>
	  'CREATE POLICY other ON apikeys.plans USING (true)',
	'statistics other on apikeys.plans, definition' =>
	  'CREATE STATISTICS apikeys.other ON id, name FROM apikeys.plans',
	'type apikeys_http."*/*", comment' =>
	  'COMMENT ON DOMAIN apikeys_http."*/*" IS NULL',
	'type apikeys_http."*/*", not null' =>
	  'ALTER DOMAIN apikeys_http."*/*" SET NOT NULL',
	'type apikeys.other, labels' =>
	  q(CREATE TYPE apikeys.other AS ENUM ('a')),
	'schema apikeys, privileges' => 'GRANT USAGE ON SCHEMA apikeys TO PUBLIC',
	'schema apikeys, comment' => 'COMMENT ON SCHEMA apikeys IS NULL',
	'dump of apikeys.rollups, condition' => q(
		UPDATE pg_extension SET (extconfig, extcondition) =
		       (SELECT array_agg(c), array_agg(t)
		          FROM unnest(extconfig, extcondition) u(c, t)
		         WHERE c <> 'apikeys.rollups'::regclass)
		 WHERE extname = 'apikeys'),
	'dump of apikeys.plans, condition' => q(
		UPDATE pg_extension SET extcondition[array_position(extconfig, 'apikeys.plans'::regclass)] = 'WHERE false'
		 WHERE extname = 'apikeys'),
	'function apikeys.uuidv7(), initial privileges' => q(
		DELETE FROM pg_init_privs
		 WHERE objoid = 'apikeys.uuidv7'::regproc AND classoid = 'pg_proc'::regclass),
	'extension apikeys, version' =>
	  q(UPDATE pg_extension SET extversion = 'x' WHERE extname = 'apikeys'));
my $seen = 0;
foreach my $about (sort keys %changes)
{
	my $changed = catalog($node, 'postgres', $changes{$about});
	my ($what) = $about =~ /^(.*?) *$/;
	my $there = grep { /: \Q$what\E[: \n]/ } differences($fresh, $changed);
	my $back = grep { /: \Q$what\E[: \n]/ } differences($changed, $fresh);
	is("$there $back", '1 1', "a difference is seen: $changes{$about}");
}
same_catalog($fresh, catalog($node, 'postgres'), 'nothing of it stayed');

# ----- Every released version -----

my @frozen = map { /apikeys--(.*)\.sql$/ } grep { !/--.*--/ }
  glob("$root/sql/upgrade/apikeys--*.sql");
note('released: ', join(' ', @frozen) || 'none');
foreach my $from (@frozen)
{
	my $database = "from_$from";
	$database =~ s/\W/_/g;
	if ($from eq $version)
	{
		is(join('', map { slurp_file($_) } sort(glob("$root/sql/install/*.sql"))),
			slurp_file("$root/sql/upgrade/apikeys--$from.sql"),
			"$from is released: what is installed is what was frozen");
		next;
	}
	updated($node, $database, $from);
	same_catalog($fresh, catalog($node, $database),
		"an update from $from is as a fresh $version");
}
$node->stop;

# ----- A next version, made up -----

my $next = "$version.next";
my $dir = abs_path(PostgreSQL::Test::Utils::tempdir);
my %at;
foreach my $name (qw(bindir pkglibdir sharedir))
{
	$at{$name} = `pg_config --$name`;
	chomp $at{$name};
	$at{$name} = abs_path($at{$name});
}

# The copy: programs that look for others are copies, all else are links. The
# common start of all paths is cut off, which leaves them as they lie.
sub link_all
{
	my ($from, $to, $except) = @_;
	system_or_bail('mkdir', '-p', $to);
	foreach my $file (glob("$from/*"))
	{
		symlink $file, "$to/" . basename($file) or die "$to: $!"
		  unless basename($file) =~ $except;
	}
	return;
}
my $inst = "$dir/pg$at{bindir}";
link_all($at{bindir}, $inst, qr/^(postgres|initdb|pg_ctl|pg_config)$/);
system_or_bail('cp', "$at{bindir}/$_", $inst)
  foreach qw(postgres initdb pg_ctl pg_config);
link_all($at{pkglibdir}, "$dir/pg$at{pkglibdir}", qr/^(apikeys|bitcode$)/);
link_all($at{sharedir}, "$dir/pg$at{sharedir}", qr/^extension$/);
link_all("$at{sharedir}/extension", "$dir/pg$at{sharedir}/extension",
	qr/^apikeys/);
my $pg_config = "$inst/pg_config";
is(abs_path(`$pg_config --sharedir` =~ s/\n//r), "$dir/pg$at{sharedir}",
	'the copy of PostgreSQL keeps to itself');
$inst = dirname($inst);

# The tree of the sources, built for the server under test.
my $tree = "$dir/tree";
my @make = ('make', '-s', '-C', $tree, 'with_llvm=no');
mkdir $tree;
system_or_bail('cp', '-R', (map { "$root/$_" } qw(Makefile apikeys.control src sql)), $tree);
delete local @ENV{qw(MAKEFLAGS MAKELEVEL MFLAGS)};

sub build_and_install
{
	system_or_bail(@make, '-j2', 'all', "PG_CONFIG=$at{bindir}/pg_config");
	system_or_bail(@make, 'install', "PG_CONFIG=$pg_config");
	return;
}

sub edit
{
	my ($file, $edit) = @_;
	local $_ = slurp_file("$tree/$file");
	$edit->() or die "nothing to edit in $file";
	open my $handle, '>', "$tree/$file" or die "$file: $!";
	print $handle $_;
	close $handle;
	return;
}

build_and_install();
my $old = new_server_at('old');

sub new_server_at
{
	my ($name) = @_;
	my $server = PostgreSQL::Test::Cluster->new($name, install_path => $inst);
	$server->init(extra => [ '--no-locale', '-E', 'UTF8' ]);
	$server->append_conf('postgresql.conf', q(
shared_preload_libraries = 'apikeys'
apikeys.flush_interval = '200ms'
apikeys.meter_timeout = '30s'
log_statement = 'none'));
	$server->start;
	return $server;
}

# Keys of a limit whose step is ten, in databases that are updated in different
# order of things.
my %secret;
my %id;
foreach my $database (qw(hasty orderly))
{
	$old->safe_psql('postgres', "CREATE DATABASE $database");
	install($old, $database);
	$old->safe_psql($database,
		q(SELECT apikey_plan_create('Plan', 640, 'year', plan_id => 'plan')));
	($id{$database}, $secret{$database}) =
	  issue($old, $database, q('key', plan_id => 'plan'));
	is(verify_times($old, $database, $secret{$database}, 100),
		100, "100 of 640 are used ($database)");
}

# A release, and what comes after it.
system_or_bail(@make, 'freeze', "PG_CONFIG=$pg_config");
system_or_bail(@make, 'freeze', "PG_CONFIG=$pg_config");
is( slurp_file("$tree/sql/upgrade/apikeys--$version.sql"),
	slurp_file("$tree/sql/apikeys--$version.sql"),
	'make freeze keeps the install script');
edit('sql/install/01_schema.sql', sub { s/\z/-- A change\n/ });
isnt(system("@make freeze PG_CONFIG=$pg_config 2>$dir/refusal"),
	0, 'make freeze does not write over a release');
like(slurp_file("$dir/refusal"), qr/is frozen already, and differs/,
	'and says so');

edit('apikeys.control', sub { s/^default_version = .*/default_version = '$next'/m });
isnt(system("@make freeze PG_CONFIG=$pg_config 2>$dir/refusal"),
	0, 'nor freezes a version that the library has not');
edit('src/apikeys.h', sub { s/^#define AK_VERSION .*/#define AK_VERSION "$next"/m });

# The same objects, made at once by the install script, and step by step, in
# another order, by the update.
my $function = q(
CREATE FUNCTION apikeys.later_check() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.later_check() IS 'Check a row of later';
REVOKE EXECUTE ON FUNCTION apikeys.later_check() FROM PUBLIC;
);
my $view = q(
CREATE VIEW apikeys.later_names WITH (security_barrier) AS SELECT l.name FROM apikeys.later l;
COMMENT ON VIEW apikeys.later_names IS 'Names of later';
COMMENT ON COLUMN apikeys.later_names.name IS 'The name';
);
my $public = q(
CREATE FUNCTION @extschema@.later_count(minimum bigint DEFAULT 0) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT greatest(count(*), minimum) FROM apikeys.later $$;
COMMENT ON FUNCTION @extschema@.later_count(bigint) IS 'How many there are';
REVOKE EXECUTE ON FUNCTION @extschema@.later_count(bigint) FROM PUBLIC;
);
my $trigger = q(
CREATE TRIGGER before_write BEFORE INSERT OR UPDATE ON apikeys.later
    FOR EACH ROW EXECUTE FUNCTION apikeys.later_check();
ALTER TABLE apikeys.later ENABLE ALWAYS TRIGGER before_write;
COMMENT ON TRIGGER before_write ON apikeys.later IS 'Checks values';
);
append_to_file("$tree/sql/install/71_later.sql", qq(
CREATE TABLE apikeys.later (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT later_pkey PRIMARY KEY,
    name text NOT NULL DEFAULT 'none',
    parent bigint CONSTRAINT later_parent_fkey REFERENCES apikeys.later (id),
    CONSTRAINT later_name_check CHECK (name <> '')
) WITH (fillfactor = 50);
COMMENT ON TABLE apikeys.later IS 'What comes later';
COMMENT ON COLUMN apikeys.later.name IS 'The name';
CREATE INDEX later_name_idx ON apikeys.later (name);
SELECT pg_catalog.pg_extension_config_dump('apikeys.later', '');
$function $trigger $view $public));
append_to_file("$tree/sql/install/72_plans.sql", q(
COMMENT ON TABLE apikeys.plans IS 'Plans, now and later';
));

my $step = "$tree/sql/upgrade/apikeys--$version--$next.sql";
my $update = qq(
\\echo Use "ALTER EXTENSION apikeys UPDATE" to load this file. \\quit
COMMENT ON TABLE apikeys.plans IS 'Plans, now and later';
$function
CREATE TABLE apikeys.later (id bigint NOT NULL, name text);
$trigger
ALTER TABLE apikeys.later ALTER id ADD GENERATED ALWAYS AS IDENTITY,
    ADD CONSTRAINT later_name_check CHECK (name <> ''),
    ADD CONSTRAINT later_pkey PRIMARY KEY (id);
ALTER TABLE apikeys.later ADD gone text, ADD parent bigint
    CONSTRAINT later_parent_fkey REFERENCES apikeys.later (id);
ALTER TABLE apikeys.later ALTER name SET NOT NULL, ALTER name SET DEFAULT 'none',
    DROP COLUMN gone, SET (fillfactor = 50);
CREATE INDEX later_name_idx ON apikeys.later (name);
SELECT pg_catalog.pg_extension_config_dump('apikeys.later', '');
$view $public
COMMENT ON COLUMN apikeys.later.name IS 'The name';
COMMENT ON TABLE apikeys.later IS 'What comes later';
);
append_to_file($step, $update);

# ----- New files under a running server, and the wrong order -----

my $session = $old->background_psql('hasty', on_error_stop => 0);
sub ask
{
	my ($query) = @_;
	$session->{stderr} = '';
	my $answer = $session->query($query);
	return $answer . $session->{stderr};
}
my $verification = qq(SELECT code FROM apikey_verify('$secret{hasty}'));
ask("PREPARE verification AS $verification");
is(ask('EXECUTE verification'), 'VALID', 'an open session verifies');
my $worker =
  "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'apikeys worker' AND datname = 'hasty'";
is($old->safe_psql('postgres', $worker), '1', 'a worker runs');

build_and_install();
is($old->safe_psql('postgres', q(SELECT default_version FROM pg_available_extensions WHERE name = 'apikeys')),
	$next, 'the files of the next version are there');
is(ask('EXECUTE verification'), 'VALID', 'which disturbs nobody');
is(verify($old, 'hasty', $secret{hasty}), 'VALID', 'nor a new session');

# An update that is undone was none.
$old->safe_psql('hasty', 'BEGIN; ALTER EXTENSION apikeys UPDATE; ROLLBACK');
is(ask('EXECUTE verification'), 'VALID', 'an update that is undone was none');
ok($old->poll_query_until('postgres', $worker, '1'), 'and the worker is back');
my $used = 104;
is(usage($old, 'hasty', $id{hasty}), $used, 'every one of them counted');

$old->safe_psql('hasty', 'ALTER EXTENSION apikeys UPDATE');
# Over HTTP, the message is JSON.
my $differ =
  qr/ERROR: .*library and SQL objects of \\?"apikeys\\?" differ in version/;
my $detail = qr/The library is \Q$version\E, the objects in this database are \Q$next\E/;
my $answer = ask('EXECUTE verification');
like($answer, $differ, 'the open session says that the library is too old');
like($answer, $detail, 'and which is which');
unlike($answer, qr/VALID/, 'and says no yes');
foreach my $call (
	$verification,
	"SELECT code FROM apikey_verify_many('{$secret{hasty}}')",
	"SELECT code FROM apikey_reserve('$secret{hasty}', 1)",
	"SELECT id FROM apikey_whoami('$secret{hasty}')",
	"SELECT apikeys_http.apikey_verify('$secret{hasty}')",
	"SELECT current_usage FROM apikey_usage('$id{hasty}')")
{
	my ($name) = $call =~ /(apikey\w+(?:\.\w+)?)\(/;
	foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
	{
		$old->psql('hasty', "BEGIN ISOLATION LEVEL $isolation; $call",
			stdout => \my $stdout, stderr => \my $stderr);
		like($stderr, $differ, "so does a new one: $name, $isolation");
		is($stdout, '', "with no answer: $name");
	}
}
ok($old->poll_query_until('postgres', $worker, '0'), 'the worker has left');
is( $old->safe_psql('hasty', q(
		SELECT u.current_usage, u.charged, i.closed_at IS NOT NULL
		  FROM apikeys.usage u JOIN apikeys.incarnations i ON i.id = u.incarnation)),
	"$used|$used|t", 'and has closed the meter before, with every count');
is(verify($old, 'orderly', $secret{orderly}), 'VALID', 'other databases go on');

# The control file makes a new installation one of the next version.
$old->safe_psql('postgres', 'CREATE DATABASE too_new');
install($old, 'too_new');
$old->psql(
	'too_new', qq(SELECT code FROM apikey_verify('$secret{hasty}')),
	stdout => \my $stdout,
	stderr => \my $stderr);
like($stderr, $differ, 'an installation anew says so too');
is($stdout, '', 'with no answer');
$session->quit;

# ----- The right order -----

$old->restart;
is(verify_times($old, 'hasty', $secret{hasty}, 640),
	640 - $used, 'after the restart the count goes on, exactly');

$session = $old->background_psql('orderly', on_error_stop => 0);
$answer = ask("SELECT code FROM apikey_verify('$secret{orderly}')");
like($answer, $differ, 'the new library does not work with old objects');
like($answer, qr/The library is \Q$next\E, the objects in this database are \Q$version\E/,
	'and says which is which');
like($answer, qr/HINT:  Run ALTER EXTENSION apikeys UPDATE/, 'and what to do');
$old->safe_psql('orderly', 'ALTER EXTENSION apikeys UPDATE');
is(ask("SELECT code FROM apikey_verify('$secret{orderly}')"),
	'VALID', 'after the update the same session verifies');
is(usage($old, 'orderly', $id{orderly}), 102, 'and the count goes on, exactly');
is($old->safe_psql('orderly', 'SELECT later_count(7)'), '7', 'what is new works');
$session->quit;

# ----- As a fresh one -----

foreach my $schema ('public', '"Odd schema"')
{
	my $suffix = $schema eq 'public' ? 'public' : 'odd';
	$old->safe_psql('postgres', "CREATE DATABASE fresh_$suffix");
	$old->safe_psql("fresh_$suffix", "SET client_min_messages = warning;
		CREATE SCHEMA IF NOT EXISTS $schema;
		CREATE EXTENSION apikeys SCHEMA $schema CASCADE");
	updated($old, "updated_$suffix", $version, $schema);
	$fresh = catalog($old, "fresh_$suffix");
	is($fresh->{'extension apikeys, version'}, $next, "a fresh $next");
	same_catalog($fresh, catalog($old, "updated_$suffix"),
		"an update from $version is as a fresh $next, in $schema");
}
same_catalog(catalog($old, 'fresh_public'), catalog($old, 'orderly'),
	'so is one with keys');

# Steps that forget something.
my %forgotten = (
	qr/COMMENT ON TABLE apikeys\.later .*\n/ => 'relation apikeys.later, comment',
	qr/, ALTER name SET DEFAULT 'none'/ => 'column apikeys.later.name, default',
	qr/ALTER TABLE apikeys\.later ENABLE ALWAYS .*\n/ =>
	  'trigger before_write on apikeys.later, enabled',
	qr/REVOKE EXECUTE ON FUNCTION \@extschema\@.*\n/ =>
	  'function public.later_count(bigint), privileges',
	qr/SELECT pg_catalog\.pg_extension_config_dump.*\n/ =>
	  'dump of apikeys.later, condition',
	qr/SECURITY DEFINER/ => 'function public.later_count(bigint), definition',
	qr/CREATE INDEX.*\n/ =>
	  'index apikeys.later_name_idx on apikeys.later, definition');
my $installed = "$dir/pg$at{sharedir}/extension/" . basename($step);
$fresh = catalog($old, 'fresh_public');
my $number = 0;
foreach my $what (sort keys %forgotten)
{
	my $faulty = $update =~ s/$what//r;
	die "nothing forgotten: $what" if $faulty eq $update;
	unlink $installed;
	append_to_file($installed, $faulty);
	my $database = 'faulty_' . ++$number;
	updated($old, $database, $version);
	my @differences = differences($fresh, catalog($old, $database));
	ok((grep { /: \Q$forgotten{$what}\E[: \n]/ } @differences),
		"a step that forgets it is found out: $forgotten{$what}")
	  or diag(join "\n", @differences);
	note(join "\n", @differences);
}
$old->stop;
done_testing();
