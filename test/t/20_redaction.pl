# What the server logs, and what others see of a statement, shows no secret:
# not six characters of it in a row, whatever is logged, however it came in,
# and also where it was cut.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Contrib modules that keep or log statements, as far as they are there; ours
# comes last, as the documentation says.
my $libraries = run_command_for('pg_config', '--pkglibdir');
my @modules = grep { -e "$libraries/$_.so" } ('pg_stat_statements', 'auto_explain');
my %has = map { $_ => 1 } @modules;

my $node = new_server(
	'main',
	'shared_preload_libraries' => join(',', @modules, 'apikeys'),
	'restart_after_crash' => 'on',
	'logging_collector' => 'on',
	'log_destination' => 'stderr,csvlog,jsonlog',
	'log_filename' => 'all.log',
	'log_statement' => 'all',
	'log_duration' => 'on',
	'log_min_duration_statement' => '0',
	'log_min_messages' => 'debug1',
	'log_min_error_statement' => 'debug5',
	'log_error_verbosity' => 'verbose',
	'log_parameter_max_length_on_error' => '-1',
	'debug_print_parse' => 'on',
	'debug_print_rewritten' => 'on',
	'debug_print_plan' => 'on',
	'max_connections' => '30');
$node->append_conf('postgresql.conf', q(
pg_stat_statements.track = all
)) if $has{pg_stat_statements};
$node->append_conf('postgresql.conf', q(
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_nested_statements = on
)) if $has{auto_explain};
$node->start;

sub run_command_for
{
	my ($stdout, $stderr) = run_command(\@_);
	return $stdout;
}

my $version = $node->safe_psql('postgres', q(SHOW server_version_num));
$node->append_conf('postgresql.conf', 'debug_print_raw_parse = on')
  if $version >= 190000;
install($node);
$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements')
  if $has{pg_stat_statements};
my $dir = PostgreSQL::Test::Utils::tempdir;

# Secrets of different prefixes. A character too many is no secret any more,
# but still nobody's business.
my $long = 'prefix_' . ('p' x 25);
my %secret = map {
	my ($id, $text) =
	  issue($node, 'postgres', "'key'" . ($_ ? ", prefix => '$_'" : ''));
	(($_ || 'ak') => $text)
} ('', 'sk_live', $long);
$secret{mistyped} = $secret{ak} . 'Q';

# One that this server has never seen, nor its prefix.
my @base62 = ('0' .. '9', 'A' .. 'Z', 'a' .. 'z');
my %cut = (
	%secret,
	map { $_ => "${_}_" . join '', map { $base62[ rand 62 ] } 1 .. 38 }
	  ('foreign', 'foreign' . 'f' x 25));
my @secrets = values %cut;

# All runs of six characters, but for the prefix.
sub windows
{
	my ($secret) = @_;
	my ($tail) = $secret =~ /_([0-9A-Za-z]+)$/;
	return map { substr($tail, $_, 6) } 0 .. length($tail) - 6;
}
my @windows = map { windows($_) } @secrets;

# Trees are shown with constants as numbers, one a byte.
my $windows = join '|', @windows, map { join '\s+', map { ord } split // } @windows;
$windows = qr/$windows/;

# What is shown in the text, with what is around it.
my ($texts, $searched, $found) = (0, 0, 0);
my $folded;

sub shown
{
	my ($text) = @_;
	$texts++;
	$searched += length $text;
	my @found = $text =~ /(.{0,60}(?:$windows).{0,20})/g;
	@found = $text =~ /(.{0,60}(?:$folded).{0,20})/gi if !@found && $folded;
	$found++ if @found;
	return join "\n", splice @found, 0, 5;
}

my @logs = map { $node->data_dir . "/log/all.$_" } ('log', 'csv', 'json');
my %read;

# What was logged since the last call. The log is written by a process of its
# own: what is marked is known to be there.
my $marks = 0;

sub logged
{
	my ($what) = @_;
	my $mark = 'mark no. ' . ++$marks . ' of the test';
	$node->safe_psql('postgres', "SELECT '$mark'");
	foreach my $log (@logs)
	{
		my $text = '';
		until_true(
			sub {
				$text = substr(slurp_file($log), $read{$log} // 0);
				return index($text, $mark) >= 0;
			}) or die "the log does not get on: $log";
		$read{$log} = length slurp_file($log);
		my ($kind) = $log =~ /(\w+)$/;
		is(shown($text), '', "no secret in $kind ($what)");
		cmp_ok(length $text, '>', 100, "there was something to look at");
	}
	return;
}

# The search finds what is there.
{
	my $seen = shown("... $secret{ak} ...");
	isnt($seen, '', 'a secret is found');
	$seen = shown("9 [ @{[map { ord } split //, $secret{ak}]} ]");
	isnt($seen, '', 'also as bytes');
	my $hidden = $secret{ak};
	$hidden =~ s/_.*/_/;
	is(shown($hidden), '', 'a prefix is none');
}
$found = 0;
$read{$_} = -s $_ foreach @logs;

# ----- Literals -----

sub literals
{
	my ($text) = @_;
	my ($half) = $text =~ /^(.*_.{12})/;
	return qq(
		SELECT code FROM apikey_verify('$text');
		SELECT code FROM apikey_verify('$text', cost => -1);
		SELECT code FROM apikey_verify_many(ARRAY['$text', 'a', '$text']);
		SELECT name FROM apikey_whoami(key => E'$text');
		SELECT code FROM apikey_verify('$half');
		SELECT code FROM apikey_verify(' $half');
		SELECT code FROM apikey_verify("$text");
		SELECT code FROM apikey_verify("$half");
		PREPARE p AS SELECT code FROM apikey_verify('$text');
		EXECUTE p;
		PREPARE q (text) AS SELECT code FROM apikey_verify(\$1);
		EXECUTE q('$text');
		EXPLAIN (VERBOSE) SELECT code FROM apikey_verify('$text');
		EXPLAIN (ANALYZE) EXECUTE q('$text');
		CREATE PROCEDURE pg_temp.p(k text) LANGUAGE plpgsql
		AS 'BEGIN PERFORM apikey_verify(k); RAISE WARNING \$x\$told \%\$x\$, k; END';
		CALL pg_temp.p('$text');
		DO \$\$ BEGIN CALL pg_temp.p('$text'); RAISE WARNING 'told %', '$half'; END \$\$;
		DO \$\$ BEGIN EXECUTE 'SELECT apikey_verify(''$text'') FROM nowhere'; END \$\$;
		CREATE TEMP TABLE t AS SELECT 1 AS a, '$text' AS k;
		INSERT INTO t VALUES (2, '$text');
		CREATE UNIQUE INDEX ON t (k);
		ALTER TABLE t ADD CHECK (a <> 3);
		INSERT INTO t VALUES (3, '$text'), (3, repeat('-', 50) || '$text');
		INSERT INTO t VALUES (3, repeat('-', 50) || '$text');
		BEGIN;
		DECLARE c CURSOR FOR SELECT code FROM apikey_verify('$text');
		FETCH c;
		END;
		COPY (SELECT code FROM apikey_verify('$text')) TO STDOUT;
		SELECT '$text'::int;
		SELECT 'Bearer $text'::inet;
		SELECT '{"key": "$text" oops}'::json;
		SELECT '{"key": "$text", "longer": oops}'::json;
		SELECT '$text'::json;
		SELECT ('<a>$text' || repeat('-', 38) || '</b>')::xml;
		SELECT ('<a>$text' || repeat('-', 50) || '</b>')::xml;
		SELECT ('<a>$text' || repeat('-', 64) || '</b>')::xml;
		SELECT $text;
		SELECT * FROM $text;
		SELECT $text.x.y.z;
		SELEC '$text';
		SELECT '$text;
		';
		SELECT 1 \$\$ '$text';
		\$\$;
		SET bad.name.$text = 1;
		SET search_path = '$text';
		SET client_min_messages = '$text';
		LISTEN $text;
		COMMENT ON TABLE t IS '$text';
		SAVEPOINT $text;
		SELECT pg_notify('x', '$text');
		RESET ALL;
		DEALLOCATE ALL;
		DROP TABLE t;
		DROP PROCEDURE pg_temp.p;
	);
}

# By -c a text is sent as it is, with all its statements at once.
foreach my $name (sort keys %secret)
{
	my $n = 0;
	my $script = literals($secret{$name});
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $script, on_error_stop => 0);
	like($stdout, $name eq 'mistyped' ? qr/MALFORMED/ : qr/VALID/, "calls with literals ($name)");
	like($stderr, qr/ERROR/, 'some fail');
	$node->psql('postgres', "SET debug_pretty_print = off;\n$script", on_error_stop => 0);
	logged("literals, $name");

	$node->command_ok(
		[
			'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
			"SELECT code FROM apikey_verify('$secret{$name}');"
			  . "SELECT code FROM apikey_verify('$secret{$name}'), pg_sleep(0)"
		],
		'several statements at once');
	logged("several at once, $name");
}

# The dump of a tree has lines of at most 78 characters, and a line can end at
# any of its spaces.
{
	my $script = "SET debug_pretty_print = off;\n";
	$script .= sprintf "SELECT 1 AS %s, 1 AS %s, '%s'::text;\n",
	  'a' x ($_ > 60 ? 60 : $_), 'b' x ($_ > 60 ? $_ - 59 : 1), $secret{ak}
	  foreach 1 .. 78;
	$node->safe_psql('postgres', $script);
	logged('trees with lines that end anywhere');
}

# A name is cut after 63 bytes, and says nothing of it. A secret may have been
# pasted without its end.
foreach my $text (@cut{ sort keys %cut })
{
	# Names are in lower case: then eight characters are not there by chance.
	$folded = join '|', map { substr $text, $_, 8 } length($text) - 38 .. length($text) - 8;
	$node->psql('postgres',
		"SELECT $text; SELECT * FROM $text; SELECT '" . substr($text, 0, -10) . q('),
		on_error_stop => 0);
	logged('names, and most of a secret');
}
undef $folded;

# ----- Parameters -----

sub call
{
	my ($options, $mode, $statement, $value) = @_;
	my $file = "$dir/call.sql";
	unlink $file;
	append_to_file($file, "$statement;\n");
	local $ENV{PGOPTIONS} = $options;
	my ($stdout, $stderr) = run_command(
		[
			'pgbench', '-n', '-t', '2', '-M', $mode, '-D', "key=$value",
			'-f', $file, $node->connstr('postgres')
		]);
	return $stderr;
}

foreach my $name (sort keys %secret)
{
	foreach my $mode ('simple', 'extended', 'prepared')
	{
		# In the mode "simple" pgbench puts it in as it is, without quotes.
		my $result =
		  call('', $mode, 'SELECT code FROM apikey_verify(:key)', $secret{$name});
		is($result =~ /ERROR/ ? 'fails' : 'succeeds',
			$mode eq 'simple' ? 'fails' : 'succeeds',
			"a call with a parameter ($name, $mode)");
		like(
			call('', $mode, 'SELECT code FROM apikey_verify(:key, cost => -1)', $secret{$name}),
			qr/ERROR/, 'an error after it');
		like(
			call('', $mode, 'SELECT code FROM apikey_verify(:key), int4(:key)', $secret{$name}),
			qr/ERROR/, 'an error because of it');
		unlike(
			call('', $mode, "SELECT code FROM apikey_verify('$secret{$name}')", 'none'),
			qr/ERROR/, 'a literal');
	}
	logged("parameters, $name");
}

# Cut after so many bytes.
foreach my $name (sort keys %cut)
{
	foreach my $length (3 .. 10, 25, 41, 45, 70)
	{
		my $options = "-c log_parameter_max_length=$length"
		  . " -c log_parameter_max_length_on_error=$length"
		  . ($has{auto_explain} && $version >= 160000 ? " -c auto_explain.log_parameter_max_length=$length" : '');
		call($options, 'extended', 'SELECT code FROM apikey_verify(:key)', $cut{$name});
		call($options, 'extended', 'SELECT code FROM apikey_verify(:key, cost => -1)', $cut{$name});
		call($options, 'extended', 'SELECT int4(:key)', $cut{$name});
		call($options, 'extended', 'SELECT length(:key), int4(1) / 0',
			"{\\\"a\\\":\\\"$cut{$name}\\\"}");
	}
	logged("parameters that are cut, $name");
}

# COPY shows a line of data, or 100 bytes of it.
foreach my $name (sort keys %cut)
{
	foreach my $pad (0, 50, 60 .. 66, 80, 90 .. 98)
	{
		IPC::Run::run(
			[
				'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
				'CREATE TEMP TABLE c (a int); COPY c FROM STDIN'
			],
			'<', \('-' x $pad . $cut{$name} . "\n"),
			'>', \my $out, '2>', \my $err);
	}
	logged("COPY, $name");
}

# ----- What others see of a statement -----

my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');

# Runs statements until they wait, and looks at their texts.
sub seen
{
	my ($what, @command) = @_;
	my $run = IPC::Run::start(\@command, '<', \undef, '>', \my $out, '2>', \my $err);
	my $waiting = $node->poll_query_until(
		'postgres', q(
		SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted));
	ok($waiting, "a statement is running ($what)") or diag $err;
	my $text = $node->safe_psql(
		'postgres', q(
		SELECT query FROM pg_stat_activity
		  JOIN pg_locks USING (pid) WHERE locktype = 'advisory' AND NOT granted));
	like($text, qr/_x{38}/, 'its text is masked');
	is(shown($text), '', 'and shows no secret');
	$node->safe_psql(
		'postgres', q(
		SELECT pg_cancel_backend(pid) FROM pg_locks
		 WHERE locktype = 'advisory' AND NOT granted));
	eval { $run->finish };
	return;
}

my $wait = 'pg_advisory_lock_shared(1)';
my %running = (
	'a query' => "SELECT $wait, code FROM apikey_verify('$secret{sk_live}')",
	'CALL' => "CALL wait_for('$secret{ak}')",
	'DO' => "DO \$\$ BEGIN PERFORM code FROM apikey_verify('$secret{ak}'), $wait; END \$\$",
	'EXPLAIN' => "EXPLAIN ANALYZE SELECT $wait, code FROM apikey_verify('$secret{ak}')",
	'a query with a warning' => "SET standard_conforming_strings = off;\n"
	  . "SELECT 'a\\\\b', $wait, code FROM apikey_verify('$secret{ak}')",
	'CREATE TABLE AS' => "CREATE TEMP TABLE w AS SELECT code FROM apikey_verify('$secret{ak}'), $wait",
	'a definition' => "CREATE VIEW v AS SELECT code FROM apikey_verify('$secret{ak}')");
$node->safe_psql(
	'postgres', qq(
	CREATE PROCEDURE wait_for(k text) LANGUAGE plpgsql
	AS 'BEGIN PERFORM apikey_verify(k), $wait; END';
	CREATE FUNCTION wait_in_ddl() RETURNS event_trigger LANGUAGE plpgsql
	AS 'BEGIN PERFORM $wait; END';
	CREATE EVENT TRIGGER wait ON ddl_command_start WHEN TAG IN ('CREATE VIEW')
	EXECUTE FUNCTION wait_in_ddl()));
foreach my $what (sort keys %running)
{
	my $file = "$dir/running.sql";
	unlink $file;
	append_to_file($file, "$running{$what};\n");
	seen("$what, psql", 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', $file);
	seen("$what, $_", 'pgbench', '-n', '-t', '1', '-M', $_, '-f', $file,
		$node->connstr('postgres'))
	  foreach ('extended', 'prepared');
}

# A parallel worker shows the text of its query, which a function has made.
{
	my ($parallel) = $version >= 160000 ? 'debug_parallel_query' : 'force_parallel_mode';
	my $file = "$dir/parallel.sql";
	append_to_file($file, qq(
		SET $parallel = on;
		DO \$\$ BEGIN EXECUTE 'SELECT wait_in_worker() FROM pg_class WHERE relname <> ' || quote_literal('$secret{sk_live}'); END \$\$;));
	$node->safe_psql('postgres', q(
		CREATE FUNCTION wait_in_worker() RETURNS int LANGUAGE plpgsql PARALLEL SAFE
		AS 'BEGIN PERFORM pg_sleep(600); RETURN 1; END'));
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', $file ],
		'<', \undef, '>', \my $out, '2>', \my $err);
	my $is_waiting = q(FROM pg_stat_activity WHERE backend_type = 'parallel worker' AND wait_event = 'PgSleep');
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 $is_waiting"), 'a parallel worker is at work');
	my $text = $node->safe_psql('postgres', "SELECT query $is_waiting");
	like($text, qr/wait_in_worker.*_x{38}/, 'the text of its query is masked');
	is(shown($text), '', 'and shows no secret');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend(leader_pid) $is_waiting");
	eval { $run->finish };
	$node->safe_psql('postgres', 'DROP FUNCTION wait_in_worker');
}
logged('a parallel worker');

# Nobody is kept waiting: the time goes with the length of a text, whatever is in
# it, and however many statements share it. (It took a minute and more.)
{
	my $file = "$dir/long.sql";
	append_to_file($file, 'SELECT length(\'' . ('a' x 31 . '_') x 16_000 . "');\n");
	my $many = "SELECT 1 AS \"some_name\", 'other_value' WHERE false;" x 8_000;
	append_to_file("$dir/many.sql", $many =~ s/;/\\;/gr . "\n;\n");
	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } 'log_statement=none', 'log_duration=off',
	  'log_min_duration_statement=-1', 'debug_print_parse=off', 'debug_print_rewritten=off', 'debug_print_plan=off',
	  ($has{auto_explain} ? 'auto_explain.log_min_duration=-1' : ());
	foreach my $name ('long', 'many')
	{
		my $begin = time;
		$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', "$dir/$name.sql" ],
			"a text that is long ($name)");
		cmp_ok(time - $begin, '<', 25, 'does not take long');
	}
}

# With the identifier of the query as it was.
is( $node->safe_psql(
		'postgres', qq(
		SET compute_query_id = on;
		SELECT query_id IS NOT NULL AND query_id <> 0 AND query ~ '_xxxx', code
		  FROM pg_stat_activity, apikey_verify('$secret{ak}')
		 WHERE pid = pg_backend_pid())),
	't|VALID',
	'the identifier of a query remains');

# A prepared statement that is run again.
{
	my $file = "$dir/again.sql";
	append_to_file($file, "SELECT code, set_config('a.b', query, false) FROM apikey_verify('$secret{ak}'),"
		  . " pg_stat_activity WHERE pid = pg_backend_pid();\n"
		  . "INSERT INTO texts SELECT current_setting('a.b'), query, current_query()"
		  . " FROM pg_stat_activity WHERE pid = pg_backend_pid() AND '$secret{ak}' <> '';\n");
	$node->safe_psql('postgres', 'CREATE TABLE texts (before text, now text, current text)');
	$node->command_ok(
		[ 'pgbench', '-n', '-t', '3', '-M', 'prepared', '-f', $file, $node->connstr('postgres') ],
		'a statement is prepared and run three times');
	my $texts = $node->safe_psql('postgres', 'SELECT * FROM texts');
	is(shown($texts), '', 'its text is masked each time');
	is(scalar(() = $texts =~ /_x{38}/g), 9, 'as it is seen from within');
	$node->safe_psql('postgres', 'DROP TABLE texts');
}

# A statement that could not be parsed stays visible in an idle session.
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query("SELEC '$secret{ak}'");
	my $texts = $node->safe_psql('postgres',
		q(SELECT query FROM pg_stat_activity WHERE query LIKE 'SELEC ''%'));
	like($texts, qr/SELEC '\w+_x{38}'/, 'the text of a wrong statement is masked');
	$session->quit;
}
logged('what was run');

if ($has{pg_stat_statements})
{
	my $texts = $node->safe_psql('postgres', 'SELECT query FROM pg_stat_statements');
	is(shown($texts), '', 'no secret in pg_stat_statements');
	like($texts, qr/$_/i, "it has $_") foreach ('CALL ', 'DO ', 'EXPLAIN ');
}
else
{
	note 'there is no pg_stat_statements here';
}

# ----- A crash -----

# The server tells what the process that died was doing. A session that does
# without redaction: the postmaster masks what it tells, also where it is cut,
# after 1023 bytes.
foreach my $pad (0, 975, 990, 1000)
{
	foreach my $redact ('on', 'off')
	{
		next if $pad && $redact eq 'on';
		my $run = IPC::Run::start(
			[
				'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
				"SET apikeys.redact_log = $redact; SET log_statement = none;"
				  . ' SET log_min_duration_statement = -1; SET log_duration = off;'
				  . ' SET debug_print_parse = off; SET debug_print_rewritten = off;'
				  . ' SET debug_print_plan = off', '-c',
				"SELECT /*" . '-' x $pad . "*/ '$cut{foreign}', pg_advisory_lock(2), pg_sleep(600)"
			],
			'<', \undef, '>', \my $out, '2>', \my $err);
		ok( $node->poll_query_until(
				'postgres', q(
				SELECT count(*) = 1 FROM pg_locks
				 WHERE locktype = 'advisory' AND objid = 2 AND granted)),
			"a session is at work (redaction $redact, after $pad bytes)");
		my $pid = $node->safe_psql('postgres',
			q(SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 2));
		kill 'KILL', $pid;
		eval { $run->finish };
		ok($node->poll_query_until('postgres', 'SELECT true'), 'the server is back');
		logged('a crash');
		like(slurp_file($logs[0]), qr/\(PID $pid\) was terminated.*\n.*Failed process was running: SELECT/,
			'the log tells of the crash');
	}
}
eval { $gate->quit };

# ----- What is no secret stays -----

my ($ret, $stdout, $stderr) = $node->psql('postgres', q(
	DO $$ BEGIN
	RAISE WARNING '%', 'max_connections ak_table "ak_accounts" fk_UserAccount ok';
	RAISE WARNING '%', 'md5_d41d8cd98f00b204e9800998ecf8427e UK_r43af9ap4edm43mmtq01oddj6';
	RAISE WARNING '%', 'n 1_00000000000000000000000000000000000000000 apikeys_verification';
	END $$), on_error_stop => 0);
my @lines = $stderr =~ /WARNING:\s+(.*)/g;
is("@lines",
	'max_connections ak_table "ak_accounts" fk_UserAccount ok'
	. ' md5_d41d8cd98f00b204e9800998ecf8427e UK_r43af9ap4edm43mmtq01oddj6'
	. ' n 1_00000000000000000000000000000000000000000 apikeys_verification',
	'names and numbers are not masked');

my $shown = $found;

# ----- Switched off -----

$read{$_} = -s $_ foreach @logs;
$node->safe_psql('postgres', qq(
	SET apikeys.redact_log = off;
	SELECT code FROM apikey_verify('$secret{ak}')));
$node->safe_psql('postgres', "SELECT 'the end'");
ok( until_true(sub { substr(slurp_file($logs[0]), $read{ $logs[0] }) =~ /the end/ }),
	'the log is written');
isnt(shown(substr(slurp_file($logs[0]), $read{ $logs[0] })),
	'', 'redaction can be switched off');

$found = $shown;

# ----- The other order of libraries -----

if ($has{pg_stat_statements})
{
	$node->append_conf('postgresql.conf',
		q(shared_preload_libraries = 'apikeys, pg_stat_statements'));
	$node->restart;
	my $file = "$dir/order.sql";
	append_to_file($file, join ";\n",
		"CALL nothing('$secret{ak}')",
		"DO \$\$ BEGIN PERFORM 1 FROM apikey_verify('$secret{ak}'); END \$\$",
		"EXPLAIN SELECT code FROM apikey_verify('$secret{ak}')",
		"CREATE TABLE ordered AS SELECT code FROM apikey_verify('$secret{ak}')",
		"DROP TABLE ordered", '');
	$node->safe_psql('postgres', q(
		SELECT pg_stat_statements_reset();
		CREATE PROCEDURE nothing(text) BEGIN ATOMIC END));
	$node->command_ok(
		[ 'pgbench', '-n', '-t', '2', '-M', $_, '-f', $file, $node->connstr('postgres') ],
		"statements of clients ($_)")
	  foreach ('simple', 'extended', 'prepared');
	my $texts = $node->safe_psql('postgres', 'SELECT query FROM pg_stat_statements');
	is(shown($texts), '', 'statements of clients are masked in either order');
	like($texts, qr/$_/, "$_ is there")
	  foreach ('CALL ', 'DO .*_xxx', 'EXPLAIN ', 'CREATE TABLE ');
}

if ($ENV{APIKEYS_FIGURES})
{
	append_to_file(
		$ENV{APIKEYS_FIGURES},
		sprintf "11|%d secrets in log (stderr, csv, json: %.0f MB), pg_stat_activity%s"
		  . "|%d texts looked at, %d showed six characters in a row\n",
		scalar @secrets, $searched / 1e6,
		$has{pg_stat_statements} ? ', pg_stat_statements' : '', $texts, $found);
}

$node->stop;
done_testing();
