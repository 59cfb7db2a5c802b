# Who may do what: every function, table, view and sequence of the extension,
# tried by roles of every kind, with a search_path full of traps, with overloads
# next to the functions, and with session_replication_role. What is
# refused must have read and changed nothing. All is generated from the catalogs
# (test/hostile.sql), so that a new function is covered by itself: nobody may
# call it until it is named here.
#
# With APIKEYS_MATRIX=full, which --long sets, every combination is tried. Without,
# roles that may call nothing meet one search_path less, and each role tries to
# redefine every fifth function.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $full = ($ENV{APIKEYS_MATRIX} // '') eq 'full';

# The sets of apikey_grant, as doc/reference.md tells them.
my @application = qw(apikey_current apikey_current_user apikey_current_key
  apikey_current_permissions apikey_current_metadata);
my @verifier = (
	@application, qw(apikey_verify apikey_verify_many apikey_reserve
	  apikey_settle apikey_whoami apikey_authenticate apikey_check apikey_verify_http));
my @viewer = qw(apikey_get apikey_list apikey_count apikey_usage
  apikey_usage_series apikey_requests apikey_plan_get apikey_plan_list
  apikey_plan_usage apikey_user_get apikey_user_list apikey_user_usage
  apikey_user_usage_series apikey_user_requests apikey_role_list
  apikey_limit_list apikey_ledger apikey_user_ledger apikey_metrics
  apikey_dashboard);
my @manager = (
	@viewer, qw(apikey_create apikey_update apikey_delete apikey_restore
	  apikey_regenerate apikey_plan_create apikey_plan_update
	  apikey_plan_delete apikey_user_create apikey_user_update
	  apikey_user_delete apikey_revoke apikey_erase_user apikey_fence apikey_unfence apikey_role_create
	  apikey_role_update apikey_role_delete apikey_limit_set
	  apikey_limit_delete apikey_credits apikey_user_credits
	  apikey_usage_adjust));

# What may change though every statement is rolled back: what verification
# counts. Reading loads counts into the meter, and applies refills.
my @counted = qw(meter usage);
my @verified = (@counted, qw(requests requests_default rollups rollup_totals
	  rollup_journal request_ids reservations reservation_marks rate_marks));

# "calls" names what a role may call, "changes" what may be different afterwards;
# "reads" what it may see: texts of the tables, digests.
my %roles = (
	stranger => { grants => '' },
	neighbour => {
		grants => 'GRANT USAGE ON SCHEMA apikeys, apikeys_http TO neighbour',
		forms => 1
	},
	application => { grants => q(SELECT apikey_grant('application', 'application')), calls => \@application },
	verifier => {
		grants => q(SELECT apikey_grant('verifier', 'verifier')),
		calls => \@verifier, changes => \@verified, reads => 'texts'
	},
	viewer => {
		grants => q(SELECT apikey_grant('viewer', 'viewer')),
		calls => \@viewer, changes => \@counted, reads => 'texts'
	},
	manager => {
		grants => q(SELECT apikey_grant('manager', 'manager')),
		calls => \@manager, changes => \@counted, reads => 'texts'
	},
	app => {
		grants => q(SELECT apikey_grant('app', 'manager'), apikey_grant('app', 'verifier');
			GRANT SET ON PARAMETER session_replication_role TO app),
		calls => [ @manager, @verifier ], changes => \@verified, reads => 'texts', replicates => 1
	},
	owner => { grants => 'ALTER DATABASE app OWNER TO owner; GRANT USAGE ON SCHEMA apikeys, apikeys_http TO owner' },
	creator => {
		grants => 'GRANT CREATE ON DATABASE app TO creator;
			GRANT CREATE ON SCHEMA public TO creator;
			GRANT USAGE ON SCHEMA apikeys, apikeys_http TO creator;
			GRANT USAGE ON SCHEMA test TO creator; GRANT SELECT ON test.functions TO creator;
			SET ROLE creator; CALL test.set_overloads()'
	},
	reader => { grants => 'GRANT pg_read_all_data TO reader', may => 'SELECT', changes => \@counted, reads => 'digests' },
	writer => { grants => 'GRANT pg_write_all_data TO writer; GRANT USAGE ON SCHEMA apikeys_http TO writer', may => 'WRITE' },
	monitor => { grants => 'GRANT pg_monitor TO monitor; GRANT USAGE ON SCHEMA apikeys, apikeys_http TO monitor' },
	replicator => { grants => 'ALTER ROLE replicator REPLICATION; GRANT USAGE ON SCHEMA apikeys, apikeys_http TO replicator' },
	switcher => {
		grants => 'GRANT SET ON PARAMETER session_replication_role TO switcher;
			GRANT USAGE ON SCHEMA apikeys, apikeys_http TO switcher',
		replicates => 1
	});

# A sweep would be a change that no role has made.
my $node = new_server(
	'main',
	'apikeys.flush_interval' => '50ms',
	'apikeys.sweep_interval' => '1d');
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE app');
$node->safe_psql('postgres', "CREATE ROLE $_ LOGIN") foreach sort keys %roles;
install($node, 'app');
run_file($node, 'rich.sql');
run_file($node, 'hostile.sql');
foreach my $role (sort keys %roles)
{
	$node->safe_psql('app', "SET client_min_messages = warning; $roles{$role}{grants}");
}

my @calls = rows('SELECT n, schema, name, kind, statement FROM test.calls ORDER BY n');
my @functions = rows('SELECT oid, schema, name, signature, prorettype::regtype, prosecdef FROM test.functions ORDER BY schema, name, signature');
my @relations = rows('SELECT qualified, relkind, first_column, name, schema FROM test.relations ORDER BY qualified');
my $shadows = $node->safe_psql('app', 'SELECT test.shadows()');
my @secrets = map { $_->[0] } rows(q(SELECT secret FROM handed_out WHERE secret IS NOT NULL ORDER BY what = 'unlimited' DESC));
my @digests = map { $_->[0] } rows(q(SELECT encode(d, 'hex') FROM apikeys.keys, LATERAL (VALUES (digest), (previous_digest)) v(d) WHERE d IS NOT NULL));
cmp_ok(scalar @functions, '>', 150, 'functions of the extension');
cmp_ok(scalar @relations, '>', 20, 'tables and views of the extension');
my %known = map { $_->[2] => 1 } @functions;
is(join(' ', grep { !$known{$_} } @manager, @verifier), '', 'there are the functions that the sets name');

# What PostgREST sets.
my $request = qq(SET request.method = 'POST'; SET request.path = '/rpc/x';
	SET request.headers = '{"x-api-key": "$secrets[0]", "authorization": "Bearer $secrets[0]"}';);

# ----- The paths, with proof that the traps are armed -----

my $trapped = 'SET search_path = trap, pg_temp, pg_catalog, public;';
my $shadowed = 'SET search_path = pg_temp, trap, pg_catalog, public, apikeys;';
foreach my $bait (q(SELECT now()), q(SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text),
	q(SELECT count(*)), q(SELECT '{}'::pg_catalog.jsonb || '{}'::pg_catalog.jsonb),
	q(SELECT 'a'::text), q(TABLE keys), q(TABLE pg_roles), q(SELECT lower('A'::pg_catalog.text)))
{
	my ($result, undef, $stderr) = $node->psql('app', "$shadows\n$shadowed $bait");
	like($stderr, qr/trapped as/, "a trap: $bait");
}
isnt(hits(), 0, 'hits are counted');
$node->safe_psql('app', q(SELECT setval('trap.hits', 1, false)));
my ($overload_result, undef, $overload_error) = $node->psql('app', q(SELECT apikey_get('x'::text)));
like($overload_error, qr/trapped as/, 'an overload is a trap as well');
$node->safe_psql('app', q(SELECT setval('trap.hits', 1, false)));

# ----- The matrix -----

my %combinations;
my $before = quiet();
my (%answered, %tried);

# Those who verify come last: rollups are written some time after it.
foreach my $role (sort { verifies($a) <=> verifies($b) || $a cmp $b } keys %roles)
{
	my $r = $roles{$role};
	my %may = map { $_ => 1 } @{ $r->{calls} // [] };
	my @modes = ([ 'the usual search_path', '' ], [ 'traps', $trapped ]);
	push @modes, [ 'shadows', $shadowed ] if $full || %may;
	push @modes, [ 'traps as replica', "$trapped SET session_replication_role = 'replica';" ] if $r->{replicates};

	foreach my $mode (@modes)
	{
		my ($what, $settings) = @$mode;
		my @attempts;
		foreach my $call (@calls)
		{
			my ($n, $schema, $name, $kind, $statement) = @$call;
			push @attempts, { statement => $statement, allowed => $may{$name}, name => $name };
		}
		$combinations{calls} += @attempts;
		my $output = attempt($role, "$shadows\n$settings", @attempts);

		wrong("calls of $role, $what",
			grep { $_->{allowed} ? $_->{state} =~ /^(42501|XX...|none)$/ : $_->{state} ne '42501' } @attempts);
		foreach my $a (grep { $_->{allowed} } @attempts)
		{
			# A wrapper may have used up what the function could: they are one.
			$tried{ $a->{name} } //= $a->{state};
			$answered{ $a->{name} } = 1 if $a->{state} eq '00000';
		}
		unleaked($output, $r, "calls of $role, $what");
	}

	# Tables and views, each statement undone.
	my @attempts;
	foreach my $relation (@relations)
	{
		my ($qualified, $kind, $column, $name, $schema) = @$relation;
		foreach my $form (relation_forms($qualified, $column))
		{
			my ($class, $statement) = @$form;
			push @attempts, {
				statement => $statement, class => $class, view => $kind eq 'v',
				allowed => $class eq ($r->{may} // ''), undo => $class ne 'GRANT'
			};
		}
	}
	$combinations{relations} += @attempts;
	my $output = attempt($role, '', @attempts);
	wrong("$role with tables and views",
		grep {
			# Views cannot be truncated, indexed and the like; a foreign key
			# needs rights first, DROP the right kind.
			    $_->{state} =~ /^(XX...|none)$/ ? 1
			  : $_->{allowed} || $_->{class} eq 'GRANT' ? 0
			  : $_->{view} && $_->{state} =~ /^(0A000|55000)$/ ? 0
			  : $_->{class} eq 'none' ? $_->{state} eq '00000'
			  :                         $_->{state} ne '42501'
		} @attempts);
	if ($r->{may})
	{
		my $done = grep { $_->{allowed} && $_->{state} eq '00000' } @attempts;
		cmp_ok($done, '>', 20, "$role may do some of it");
	}
	unleaked($output, $r, "$role with tables and views");

	# What only their owner may define and change.
	@attempts = map { { statement => $_, undo => !/^GRANT/ } } definitions($role);
	$combinations{definitions} += @attempts;
	$output = attempt($role, '', @attempts);
	wrong("$role defines something of the extension anew",
		grep { $_->{state} =~ /^(XX...|none)$/ || ($_->{undo} && $_->{state} eq '00000') } @attempts);

	# Other ways than SELECT to call what may not be called.
	if ($r->{forms})
	{
		@attempts = map { my $call = $_->[4]; map { { statement => $_, undo => 1 } } call_forms($call) }
		  grep { $_->[3] eq 'plausible' } @calls;
		$combinations{forms} += @attempts;
		$output = attempt($role, 'CREATE FUNCTION pg_temp.id(anyelement) RETURNS anyelement LANGUAGE sql AS $$SELECT $1$$;', @attempts);
		# A view cannot have a column of a trigger's type.
		wrong("$role calls by other ways", grep { $_->{state} !~ /^(42501|42P16)$/ } @attempts);
		unleaked($output, $r, "$role, other ways");
	}

	# Prepared by a superuser, executed after SET ROLE.
	@attempts = map { { statement => "PREPARE p AS $_->[4]\\; SET LOCAL ROLE $role\\; EXECUTE p", allowed => $may{ $_->[2] }, undo => 1 } }
	  grep { $_->[3] eq 'plausible' } @calls;
	$combinations{prepared} += @attempts;
	attempt('postgres', '', @attempts);
	wrong("what was prepared for another role, as $role", grep { ($_->{state} eq '42501') != !$_->{allowed} } @attempts);

	my $after = quiet();
	my %free = map { $_ => 1 } @{ $r->{changes} // [] };
	my @changed = grep { !$free{$_} && !/^requests_\d/ && ($before->{$_} // '') ne ($after->{$_} // '') }
	  sort keys %{ { %$before, %$after } };
	is("@changed", '', "$role has changed nothing");
	$before = $after;
}
is(hits(), 0, 'no trap was sprung');
is(join(' ', map { "$_ ($tried{$_})" } grep { !$answered{$_} } sort keys %tried), '', 'every function that is granted has answered');


# ----- Who was granted the tables -----

# Every right on them, and session_replication_role: what an ordinary trigger
# sees to is bypassed; what is ENABLE ALWAYS is not.
$node->safe_psql('app', q(
	CREATE ROLE grantee LOGIN;
	GRANT USAGE ON SCHEMA apikeys TO grantee;
	GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA apikeys TO grantee;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys TO grantee;
	GRANT SET ON PARAMETER session_replication_role TO grantee));

# History decides nothing: who was granted it may empty it. So may the list of
# users erased lately.
my %may_be_emptied = map { $_ => 1 } grep { /^(requests|erasures)(?!_ids)/ && !/^request_ids/ } map { $_->[3] } @relations;
foreach my $replication (qw(origin replica local))
{
	my @attempts = map { {
			statement => "SET LOCAL session_replication_role = $replication\\; TRUNCATE $_->[0] CASCADE",
			table => $_->[3], undo => 1 } } grep { $_->[1] ne 'v' } @relations;
	attempt('grantee', '', @attempts);
	$combinations{truncate} += @attempts;
	wrong("TRUNCATE by who may, as $replication",
		grep { ($_->{state} eq '00000') != ($may_be_emptied{ $_->{table} } // 0) || $_->{state} =~ /^XX/ } @attempts);
}

my ($id, $secret) = issue($node, 'app', q('granted', 'acme', roles => '{reader}'));
my $session = $node->background_psql('app');
my $code = sub {
	return $session->query_safe("SELECT code FROM apikey_verify('$secret', permissions => 'docs.x')") =~ s/\s//gr;
};
is($code->(), 'VALID', 'a session that has verified the key');
my $replica = sub {
	my ($statement) = @_;
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('app') . ' user=grantee', '-c',
			"SET session_replication_role = replica", '-c', $statement ],
		'<', \undef, '>', \$stdout, '2>', \$stderr) or die "$statement: $stderr";
};
foreach my $change (
	[ 'DISABLED', 'UPDATE apikeys.keys SET enabled = %s', 'false', 'true' ],
	[ 'DISABLED', 'UPDATE apikeys.users SET is_disabled = %s', 'true', 'false' ],
	[ 'DISABLED', 'UPDATE apikeys.plans SET is_active = %s', 'false', 'true' ],
	[ 'INSUFFICIENT_PERMISSIONS', 'UPDATE apikeys.roles SET permissions = %s', q('{}'), q('{docs.*}') ],
	[ 'EXPIRED', 'UPDATE apikeys.keys SET expires_at = %s', q('2020-01-01'), 'NULL' ],
	[ 'INSUFFICIENT_PERMISSIONS', 'UPDATE apikeys.roles SET permissions = %s', q('{"!! no permission","",docs.*.x}'), q('{docs.*}') ])
{
	my ($expected, $statement, $off, $on) = @$change;
	$replica->(sprintf $statement, $off);
	is($code->(), $expected, "as replica: " . sprintf $statement, $off);
	$replica->(sprintf $statement, $on);
	is($code->(), 'VALID', "as replica: " . sprintf $statement, $on);
	$combinations{replica} += 2;
}
foreach my $table (qw(keys plans users))
{
	my $count = $node->safe_psql('app', "SELECT count(*) FROM apikeys.$table");
	$replica->("DELETE FROM apikeys.$table");
	is( $node->safe_psql('app', "SELECT count(*), count(*) FILTER (WHERE deleted_at IS NULL) FROM apikeys.$table"),
		"$count|0", "as replica: DELETE FROM apikeys.$table marks the rows");
	$combinations{replica}++;
}
is($code->(), 'NOT_FOUND', 'and the key is refused');
$session->quit;

# ----- What lay in wait before the extension came -----

$node->safe_psql('postgres', 'CREATE DATABASE early');
run_file($node, 'hostile_early.sql', 'early');
my ($early_result, undef, $early_error) = $node->psql('early', q(SELECT array_position('{a}'::text[], NULL)));
like($early_error, qr/trapped/, 'a trap in the schema of the installation');
$node->safe_psql('early', q(SELECT setval('public.hits', 1, false)));
install($node, 'early');
is( $node->safe_psql('early', q(
		SELECT string_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' uses ' || p.oid::regprocedure, ', ')
		  FROM pg_depend d
		  JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid
		 WHERE p.proowner = 'mallory'::regrole AND d.classid <> 'pg_operator'::regclass)),
	'', 'nothing of the extension uses what lay in wait');
run_file($node, 'rich.sql', 'early');
is($node->safe_psql('early', 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.hits'), '0', 'nothing calls it');

my $all = 0;
$all += $_ foreach values %combinations;
note "$all combinations: ", join ', ', map { "$combinations{$_} $_" } sort keys %combinations;
if ($ENV{APIKEYS_FIGURES})
{
	append_to_file($ENV{APIKEYS_FIGURES},
		"8|" . keys(%roles) . " roles × functions, tables, traps in search_path, session_replication_role, TRUNCATE|"
		  . "$all combinations ($combinations{calls} calls); "
		  . (Test::More->builder->is_passing ? 'nothing read or changed without a grant' : 'NOT as it should be') . "\n");
}

$node->stop;
done_testing();

# ----- What the tests use -----

sub run_file
{
	my ($server, $file, $database) = @_;
	my ($stdout, $stderr) = ('', '');
	my $ok = IPC::Run::run(
		[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $server->connstr($database // 'app'), '-f', "$FindBin::RealBin/../$file" ],
		'<', \undef, '>', \$stdout, '2>', \$stderr);
	die "$file: $stderr" unless $ok;
	return;
}

sub verifies
{
	my ($role) = @_;
	return grep({ $_ eq 'apikey_verify' } @{ $roles{$role}{calls} // [] }) ? 1 : 0;
}

# Rows of a query, whose values hold no control characters.
sub rows
{
	my ($query) = @_;
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run(
		[ 'psql', '-XAtq', '-F', "\x1f", '-R', "\x1e", '-d', $node->connstr('app'), '-c', $query ],
		'<', \undef, '>', \$stdout, '2>', \$stderr) or die $stderr;
	chomp $stdout;
	return map { [ split /\x1f/, $_, -1 ] } split /\x1e/, $stdout;
}

sub hits
{
	return $node->safe_psql('app', 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM trap.hits');
}

# What all is, once the worker has nothing left to write: it is asked before the
# look at the tables, for what it writes in between must be seen.
sub quiet
{
	my $last = '';
	until_true(
		sub {
			my ($pending, $now) = split /\n/, $node->safe_psql('app', q(
				SELECT sum(value) FROM apikeys.stats
				 WHERE name IN ('counts_pending', 'counts_lag_ms', 'rollup_pending', 'history_lag_ms');
				SET search_path = public;
				SELECT string_agg(concat_ws('=', part, contents), ' ' ORDER BY part) FROM test.snapshot()));
			my $same = $now eq $last && $pending eq '0' && $now =~ /(?:^| )rollup_journal=(?: |$)/;
			$last = $now;
			return $same;
		}) or die 'the database does not come to rest';
	return { map { split /=/, $_, 2 } split / /, $last };
}

# Runs statements in one session of a role and notes how each ended; returns what
# the session was shown.
sub attempt
{
	my ($role, $start, @attempts) = @_;
	my $script = "\\set QUIET on\n$request\n$start\n";
	my $n = 0;
	foreach my $a (@attempts)
	{
		my $undo = $a->{undo} || $a->{allowed};
		$a->{state} = 'none';
		$script .= ($undo ? 'BEGIN\; ' : '') . "$a->{statement};\n\\echo \@\@ " . $n++ . " :SQLSTATE\n"
		  . ($undo ? "ROLLBACK\\; DEALLOCATE ALL;\n" : '');
	}
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run(
		[ 'psql', '-XAt', '-d', $node->connstr('app') . " user=$role" ],
		'<', \$script, '>', \$stdout, '2>', \$stderr);
	$attempts[$1]{state} = $2 while $stdout =~ /^@@ (\d+) (\w+)$/mg;
	$stderr =~ s/^LINE \d+:.*\n.*\n//mg;
	return $stdout . $stderr;
}

# Tests that no attempt has ended in a wrong way.
sub wrong
{
	my ($what, @wrong) = @_;
	my $some = join "\n", map { substr($_->{statement}, 0, 200) . ": $_->{state}" } @wrong[ 0 .. ($#wrong > 4 ? 4 : $#wrong) ];
	is($some, '', "$what, " . (@wrong ? scalar(@wrong) : 'nothing') . ' wrong');
	return;
}

sub unleaked
{
	my ($output, $r, $what) = @_;
	my $reads = $r->{reads} // '';
	my %forbidden = ('a secret' => join '|', map { substr $_, -20 } @secrets);
	$forbidden{'a digest'} = join '|', @digests if $reads ne 'digests';
	$forbidden{'a text of a table'} = '(?i)canary' unless $reads;
	my @seen;
	foreach my $kind (sort keys %forbidden)
	{
		push @seen, "$kind: $1" if $output =~ /^(.{0,100}(?:$forbidden{$kind}).{0,100})/m;
	}
	is("@seen", '', "$what: nothing is shown that is not granted");
	return;
}

# What can be done with a table or view, and who may: SELECT and WRITE are as
# the roles' "may"; nobody may do the rest. GRANT may succeed and do nothing.
sub relation_forms
{
	my ($t, $c) = @_;
	return (
		(map { [ 'SELECT', $_ ] } "TABLE $t", "SELECT count(*) FROM $t", "SELECT FROM $t",
			"COPY (TABLE $t) TO STDOUT", "EXPLAIN (ANALYZE, VERBOSE) TABLE $t",
			"CREATE TEMP VIEW mine AS TABLE $t\\; TABLE mine",
			"CREATE TEMP VIEW mine WITH (security_barrier) AS TABLE $t\\; TABLE mine",
			"CREATE TEMP TABLE mine AS TABLE $t", "CREATE TEMP TABLE mine (LIKE $t INCLUDING ALL)",
			"PREPARE p AS TABLE $t\\; EXECUTE p",
			"DECLARE c CURSOR WITH HOLD FOR TABLE $t\\; FETCH ALL FROM c",
			"DO 'BEGIN PERFORM * FROM $t; END'",
			"CREATE FUNCTION pg_temp.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM $t'\\; SELECT pg_temp.f()"),
		(map { [ 'WRITE', $_ ] } "INSERT INTO $t DEFAULT VALUES", "UPDATE $t SET $c = DEFAULT", "DELETE FROM $t",
			"LOCK TABLE $t IN ACCESS EXCLUSIVE MODE", "MERGE INTO $t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE"),
		(map { [ 'none', $_ ] } "INSERT INTO $t TABLE $t", "UPDATE $t SET $c = $c", "DELETE FROM $t WHERE $c IS NOT NULL",
			"DELETE FROM $t RETURNING *", "SELECT * FROM $t FOR UPDATE", "TRUNCATE $t", "TRUNCATE $t CASCADE",
			"ALTER TABLE $t DISABLE TRIGGER ALL", "ALTER TABLE $t ENABLE ROW LEVEL SECURITY", "ALTER TABLE $t OWNER TO CURRENT_USER",
			"ALTER TABLE $t SET SCHEMA public", "CREATE RULE r AS ON INSERT TO $t DO ALSO NOTHING",
			"CREATE POLICY p ON $t USING (true)", "CREATE INDEX ON $t ($c)", "CREATE STATISTICS s ON $c, tableoid FROM $t",
			"DROP TABLE $t CASCADE", "DROP VIEW $t CASCADE", "COMMENT ON TABLE $t IS 'x'", "CREATE TEMP TABLE mine () INHERITS ($t)",
			"CREATE TEMP TABLE mine (x int REFERENCES $t)", "CREATE PUBLICATION p FOR TABLE $t",
			"CREATE OR REPLACE VIEW $t AS SELECT 1",
			"CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'\\; CREATE TRIGGER t BEFORE INSERT ON $t FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.f()"),
		[ 'GRANT', "GRANT ALL ON $t TO PUBLIC" ]);
}

sub definitions
{
	my ($role) = @_;
	my @all = ('DROP EXTENSION apikeys CASCADE', 'DROP SCHEMA apikeys CASCADE', 'DROP SCHEMA apikeys_http CASCADE',
		'ALTER SCHEMA apikeys RENAME TO mine', "ALTER SCHEMA apikeys OWNER TO $role", "ALTER EXTENSION apikeys UPDATE TO '2.0'",
		'ALTER EXTENSION apikeys DROP TABLE apikeys.keys', 'ALTER EXTENSION apikeys ADD SCHEMA trap',
		q(GRANT ALL ON SCHEMA apikeys TO PUBLIC), 'GRANT ALL ON ALL TABLES IN SCHEMA apikeys TO PUBLIC',
		q(SET apikeys.redact_log = off), q(CREATE FUNCTION public.mine() RETURNS boolean LANGUAGE c AS '$libdir/apikeys', 'apikeys_in_purge'));
	my $n = length $role;
	foreach my $f (@functions)
	{
		next unless $full || $n++ % 5 == 0;
		my ($oid, $schema, $name, $signature, $result) = @$f;
		push @all, "ALTER FUNCTION $signature RESET ALL", "ALTER FUNCTION $signature OWNER TO $role",
		  "GRANT EXECUTE ON FUNCTION $signature TO $role WITH GRANT OPTION", "DROP FUNCTION $signature",
		  "CREATE OR REPLACE FUNCTION $signature RETURNS int LANGUAGE sql AS 'SELECT 1'",
		  "CREATE TEMP TABLE keys (id int)\\; CREATE TRIGGER t BEFORE INSERT ON pg_temp.keys FOR EACH ROW EXECUTE FUNCTION $schema.$name()";
	}
	return @all;
}

sub call_forms
{
	my ($call) = @_;
	return (
		"EXPLAIN (ANALYZE, VERBOSE) $call", "COPY ($call) TO STDOUT", "PREPARE p AS $call\\; EXECUTE p",
		"DECLARE c CURSOR WITH HOLD FOR $call\\; FETCH ALL FROM c",
		"CREATE TEMP TABLE mine AS $call",
		"CREATE TEMP VIEW mine AS $call\\; TABLE mine",
		"CREATE TEMP VIEW mine WITH (security_barrier) AS $call\\; TABLE mine",
		"DO \$do\$ BEGIN EXECUTE \$x\$$call\$x\$; END \$do\$",
		"CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql SECURITY DEFINER AS \$f\$ SELECT max(x::text) FROM ($call) x \$f\$\\; SELECT pg_temp.f()",
		"CREATE FUNCTION pg_temp.g() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS \$f\$ BEGIN EXECUTE \$x\$$call\$x\$; END \$f\$\\; SELECT pg_temp.g()",
		"SELECT x::pg_catalog.text FROM ($call) x");
}
