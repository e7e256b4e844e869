#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/threads.h"
#include "check.h"

using edgeprune::parallel_pieces;

TEST(every_piece_runs_once) {
    for (int threads : {0, 1, 2, 3, 8})
        for (int64_t pieces : {0, 1, 2, 7, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(pieces));
            parallel_pieces(threads, pieces, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
            bool once = true;
            for (const auto& n : runs) once = once && n == 1;
            CHECK(once);
        }
}

TEST(calls_inside_calls_and_from_several_threads) {
    std::atomic<int64_t> sum{0};
    const auto outer = [&] {
        for (int round = 0; round < 20; ++round)
            parallel_pieces(3, 10, [&](int64_t) { parallel_pieces(3, 10, [&](int64_t i) { sum += i; }); });
    };
    std::thread one(outer), two(outer);
    one.join();
    two.join();
    CHECK(sum == 2 * 20 * 10 * 45);
}

TEST(the_pool_survives_a_fork) {
    std::atomic<int64_t> before{0};
    parallel_pieces(3, 100, [&](int64_t) { ++before; });
    CHECK(before == 100);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a pool that waits for threads it has not got ends here
        std::atomic<int64_t> done{0};
        parallel_pieces(3, 100, [&](int64_t) { ++done; });
        _exit(done == 100 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
