#include "base/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/openmp.h"

namespace edgeprune {
namespace {

constexpr int kMaxThreads = 256;

// One parallel call. Threads draw piece numbers from `next` until none is left.
struct Job {
    void (*work)(void*, int64_t) = nullptr;
    void* context = nullptr;
    int64_t pieces = 0;
    std::atomic<int64_t> next{0};

    void run() {
        for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) work(context, piece);
    }
};

struct Pool {
    std::mutex mutex;  // guards what follows
    std::condition_variable wake, done;
    Job* job = nullptr;
    uint64_t round = 0;  // number of the current job: tells a waking thread that there is a new one
    int seats = 0;       // threads that may still join the job
    int inside = 0;      // threads that joined and have not left
    int threads = 0;     // threads started so far

    void thread_main() {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return round != seen && seats > 0; });
            seen = round;
            --seats;
            ++inside;
            Job* mine = job;
            lock.unlock();
            mine->run();
            lock.lock();
            if (--inside == 0) done.notify_one();
        }
    }

    void run(int helpers, Job& work) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            while (threads < helpers) {
                // A system that grants no more threads is no error: the caller does the rest itself.
                try {
                    std::thread([this] { thread_main(); }).detach();
                } catch (const std::exception&) {
                    break;
                }
                ++threads;
            }
            job = &work;
            ++round;
            seats = helpers;
        }
        if (helpers == 1) {
            wake.notify_one();
        } else {
            wake.notify_all();
        }
        work.run();
        std::unique_lock<std::mutex> lock(mutex);
        seats = 0;  // who has not woken up by now has nothing left to do
        done.wait(lock, [&] { return inside == 0; });
        job = nullptr;
    }
};

std::atomic<bool> busy{false};  // while a caller's job is running

// Never destroyed: its threads sleep in it until the process ends.
std::atomic<Pool*> the_pool{nullptr};

// A child by fork() has none of the threads and perhaps a locked mutex: it leaves the old pool alone and makes its own.
void start_anew_after_fork() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
        the_pool.store(nullptr, std::memory_order_relaxed);
        busy.store(false, std::memory_order_relaxed);
    });
    (void)registered;
}

Pool& pool() {
    Pool* current = the_pool.load(std::memory_order_acquire);
    if (!current) {
        Pool* fresh = new Pool;
        if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
        delete fresh;
    }
    return *current;
}

}  // namespace

void parallel_pieces(int threads, int64_t pieces, void (*work)(void*, int64_t), void* context) {
    Job job;
    job.work = work;
    job.context = context;
    job.pieces = pieces;
    if (threads > kMaxThreads) threads = kMaxThreads;
    if (threads < 2 || pieces < 2 || busy.exchange(true, std::memory_order_acquire)) return job.run();
    start_anew_after_fork();
    // As many threads as torch has, even where there are fewer pieces: a team that changes its size is made anew.
    if (!run_on_openmp(threads, [](void* mine) { static_cast<Job*>(mine)->run(); }, &job))
        pool().run(static_cast<int>(std::min<int64_t>(threads, pieces)) - 1, job);
    busy.store(false, std::memory_order_release);
}

}  // namespace edgeprune
