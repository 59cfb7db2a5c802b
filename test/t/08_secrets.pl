# A secret is in the answer that created it and nowhere else; and databases
# of other encodings work.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;
use ApikeysTest;
use File::Find;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The server's settings for its log are the defaults.
my $node = new_server(
	'main',
	'wal_level' => 'logical',
	'max_wal_senders' => '2',
	'full_page_writes' => 'on');
$node->start;
install($node);
my $dir = PostgreSQL::Test::Utils::tempdir;

$node->safe_psql('postgres',
	q(SELECT apikey_plan_create('Plan', 2, 'year', plan_id => 'plan')));
my ($id, $secret) = issue($node, 'postgres', q('key', plan_id => 'plan'));
my $after = $node->safe_psql('postgres',
	"SELECT api_key FROM apikey_regenerate('$id', '1 hour')");
isnt($after, $secret, 'a regeneration makes another secret');

# Calls as an application makes them, with the secret as a parameter; all
# outcomes and an error.
sub call
{
	my ($name, $statement, %variables) = @_;
	append_to_file("$dir/$name.sql", "$statement;\n");
	my @variables = map { ('-D', "$_=$variables{$_}") } sort keys %variables;
	my ($stdout, $stderr) = run_command(
		[
			'pgbench', '-n', '-t', '1', '-M', 'extended', @variables, '-f',
			"$dir/$name.sql", $node->connstr('postgres')
		]);
	return $stderr;
}

foreach my $n (1 .. 3)
{
	foreach my $key ($secret, $after)
	{
		unlike(
			call(
				"verify$n" . ($key eq $secret ? 'old' : 'new'),
				q(SELECT code FROM apikey_verify(:key, '/x', 'GET')),
				key => $key),
			qr/ERROR/,
			'a call succeeds');
	}
}
my $error = call(
	'error', q(SELECT code FROM apikey_verify(:key, cost => -1)),
	key => $secret);
like($error, qr/ERROR: .*cost/, 'a call fails');
unlike($error, qr/\Q$secret\E/, 'and does not repeat the secret');
ok(flushed($node, 'postgres', 6), 'what was called is written');

# In what is called: a client may put its secret into the path, or the query.
call('endpoint',
	q(SELECT code FROM apikey_verify(:key, '/bot' || :key || '/send?key=' || :other, :key, tags => ARRAY['a', :key, 'ak_b'])),
	key => $after, other => $secret);
call('cut', q(SELECT code FROM apikey_verify(:key, repeat('/', 1024 - 30) || :key)),
	key => $after);
ok(flushed($node, 'postgres', 8), 'it is written as well');
is( $node->safe_psql(
		'postgres', q(
		SELECT replace(right(endpoint, 160), '/', ''), method, array_to_string(tags, ',') FROM apikeys.requests
		 WHERE endpoint <> '/x' ORDER BY "timestamp")),
	sprintf("botak_%1\$ssend?key=ak_%1\$s|ak_%2\$s|a,ak_%1\$s,ak_b\nak_%3\$s||",
		'x' x 38, 'x' x 29, 'x' x 27),
	'without the secrets');

# With a character too many it is no secret any more, but still nobody's
# business.
call('long', q(SELECT code FROM apikey_verify(:key)), key => "${secret}x");

# As literals, with all that can be logged being logged: what has the form of a
# secret is masked there.
foreach my $text ($secret, $after)
{
	my ($ret, $stdout, $stderr) = $node->psql(
		'postgres', qq(
		SET log_statement = 'all';
		SET log_min_duration_statement = 0;
		SET log_min_error_statement = 'debug5';
		SELECT code FROM apikey_verify('$text');
		SELECT code FROM apikey_verify('$text', cost => -1);
		PREPARE p AS SELECT code FROM apikey_verify('$text');
		EXECUTE p;
		SELECT '$text'::int;
		SELEC '$text';
		DO \$\$ BEGIN RAISE WARNING 'told %', '$text'; END \$\$;),
		on_error_stop => 0);
	like($stdout, qr/USAGE_EXCEEDED/, 'a call with a literal succeeds');
}
my ($prefix) = $after =~ /^(.*_)/;
like(slurp_file($node->logfile), qr/'\Q$prefix\Ex{38}'/,
	'the log shows that there was one');

# ----- Where it must not be -----

sub search
{
	my ($what, $where) = @_;
	my $searched = 0;
	my $leaks = 0;
	foreach my $text ($secret, $after)
	{
		my ($tail) = $text =~ /_([0-9A-Za-z]{38})$/;
		die 'this is no secret' unless $tail;

		# Six characters in a row; four are public, as the key's start.
		my $any = join '|', map { substr($tail, $_, 6) } 0 .. 32;
		my @found;
		find(
			{
				no_chdir => 1,
				wanted => sub {
					return unless -f $_ && -r $_;
					$searched++;
					push @found, $_ if slurp_file($_) =~ /$any/;
				}
			},
			$where);
		$leaks += @found;
		is(join(' ', @found), '', "no secret in $what");
	}
	cmp_ok($searched, '>', 0, "there was something to search in $what");
	append_to_file($ENV{APIKEYS_FIGURES},
		"11|secrets in $what ($searched files searched)|$leaks files with six characters in a row\n")
	  if $ENV{APIKEYS_FIGURES};
	return;
}

$node->safe_psql('postgres', 'CHECKPOINT');
$node->command_ok(
	[ 'pg_dump', '-f', "$dir/dump", $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'pg_dumpall', '-f', "$dir/all", '-d', $node->connstr('postgres') ],
	'pg_dumpall');
search('a dump', "$dir/dump");
search('a dump of all', "$dir/all");
search('the log', $node->logfile);
search('the data directory, WAL included', $node->data_dir);

# The search does find what is there: a table of secrets.
$node->safe_psql(
	'postgres', qq(
	CREATE TABLE leak AS SELECT 'canary_' || repeat('c', 30) AS secret;
	CHECKPOINT));
my $canaries = 0;
find(
	{
		no_chdir => 1,
		wanted => sub {
			$canaries++
			  if -f $_ && -r $_ && index(slurp_file($_), 'canary_ccc') >= 0;
		}
	},
	$node->data_dir);
cmp_ok($canaries, '>=', 2, 'a text in a table is found, in the WAL as well');

# What tells a key from others is kept.
is( $node->safe_psql(
		'postgres', qq(
		SELECT start = left('$after', length(start)),
		       digest = sha256('$after'), previous_digest = sha256('$secret')
		  FROM apikeys.keys)),
	't|t|t',
	'stored are the start and the digests');

# ----- Other encodings -----

foreach my $encoding ('LATIN1', 'SQL_ASCII')
{
	my $database = lc $encoding;
	$node->safe_psql('postgres',
		"CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'"
	);
	install($node, $database);
	my ($key, $text) = issue($node, $database,
		q('caf' || chr(233)));
	is(verify($node, $database, $text), 'VALID', "a key in $encoding");
	is( $node->safe_psql(
			$database, qq(
			SELECT code FROM apikey_verify('$text' || chr(233)))),
		'MALFORMED',
		"a key with a character that is not ASCII ($encoding)");
	$node->safe_psql($database,
		"SELECT code FROM apikey_verify('$text', repeat(chr(233), 1500))");
	ok(flushed($node, $database, 2), "history in $encoding");
	is( $node->safe_psql(
			$database, q(
			SELECT max(length(endpoint)), bool_and(endpoint = repeat(chr(233), 1024))
			  FROM apikeys.requests)),
		'1024|t',
		"an endpoint is cut ($encoding)");
}

# In UTF-8 a character is not cut in two.
my ($key, $text) = issue($node, 'postgres', q('utf8'));
$node->safe_psql('postgres',
	"SELECT code FROM apikey_verify('$text', repeat(U&'\\20ac', 500))");
ok(flushed($node, 'postgres', 13), 'history in UTF-8');
is( $node->safe_psql(
		'postgres', qq(
		SELECT octet_length(endpoint),
		       endpoint = repeat(U&'\\20ac', 341)
		  FROM apikeys.requests WHERE key_id = '$key')),
	'1023|t',
	'an endpoint is cut between characters');

$node->stop;
done_testing();
