# scaling.awk: what the locks of a verification cost on more processors than
# there are. Run it with "awk -f test/bench/scaling.awk"; -v changes a figure.
#
# Each processor in turn works for "work" µs, takes one of "partitions" locks at
# random, or always the first if "hot", works for "inner" µs, takes the lock of
# its lane, one of "lanes", for "append" µs, and lets both go. Who finds a lock
# taken sleeps, and is "wake" µs late for it; another may have the lock meanwhile,
# as with PostgreSQL's.

function exponential(mean) {
    return -mean * log(1 - rand())
}

function simulate(n, work, inner, append, partitions, lanes, hot,
        i, p, l, t, late, done, next_p, waited, ready, free_p, free_l) {
    for (i = 0; i < n; i++)
        ready[i] = exponential(work)
    for (done = 0; done < n * 2000; done++) {
        next_p = 0
        for (i = 1; i < n; i++)
            if (ready[i] < ready[next_p])
                next_p = i
        i = next_p
        t = ready[i]
        late = 0
        p = hot ? 0 : int(rand() * partitions)
        l = i % lanes
        if (free_p[p] > t) {
            t = free_p[p]
            late = wake
            waited++
        }
        t += inner
        if (free_l[l] > t) {
            free_l[l] += append
            t = free_l[l] + wake
            waited++
        } else
            free_l[l] = t += append
        free_p[p] = t
        t += late
        ready[i] = t + exponential(work)
    }
    t = 0
    for (i = 0; i < n; i++)
        t = ready[i] > t ? ready[i] : t
    printf "| %d | %d | %.1f | %.2f | %.1f%% |\n", lanes, n, done / t,
        done / t * (work + inner + append) / n, 100 * waited / done
}

function table(title, work, partitions, lanes, hot,   n) {
    printf "\n%s\n\n| lanes | processors | million/s | of linear | had to wait |\n", title
    print "| --- | --- | --- | --- | --- |"
    for (lanes = 8; lanes <= 64; lanes *= 8)
        for (n = 2; n <= 64; n *= 2)
            if (n == 2 || n >= 16)
                simulate(n, work, inner, append, partitions, lanes, hot)
}

BEGIN {
    srand(1)
    work = work ? work : 20
    many = many ? many : 4
    inner = inner ? inner : 0.5
    append = append ? append : 0.3
    wake = wake ? wake : 5
    partitions = partitions ? partitions : 128
    table("Statements of one verification, spread", work, partitions)
    table("Verifications of one statement (apikey_verify_many), spread", many, partitions)
    table("Statements of one verification, all of one key", work, partitions, 0, 1)
}
