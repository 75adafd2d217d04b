//! Tasks that go on in another runtime when they want to.

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

thread_local! {
    /// What the task that this thread is polling has said; none when it is no [`Movable`] one.
    static POLLED: RefCell<Option<Wish>> = const { RefCell::new(None) };
}

/// Where a task wants to go on.
enum Wish {
    Here,
    At(Handle),
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that may go on in another runtime (see [`movable`]).
#[must_use = "it does nothing unless it is polled"]
pub struct Movable(Place);

enum Place {
    /// Polled by who polls this.
    Here(Task),
    /// A task of another runtime, which ends when this is dropped.
    There(AbortOnDropHandle<()>),
    Over,
}

/// Makes `task` one that goes on in another runtime when it says so: a stream that the tunnel
/// carries does, once it moves so much that it gets a way beside QUIC. Whoever polls or drops what
/// is returned does so to the task, wherever that is; only that it has been dropped he does not
/// wait for.
pub fn movable(task: impl Future<Output = ()> + Send + 'static) -> Movable {
    Movable(Place::Here(Box::pin(task)))
}

/// Goes on in `runtime`, if the task that waits for this may do so; else, or when it is there
/// already, at once and where it is.
///
/// What it had from the runtime that it leaves goes on to be watched there, from afar.
pub(crate) async fn go_on_in(runtime: &Handle) {
    let mut asked = false;
    poll_fn(|_| {
        if asked || Handle::try_current().is_ok_and(|here| here.id() == runtime.id()) {
            return Poll::Ready(());
        }
        asked = POLLED.with_borrow_mut(|wish| match wish {
            Some(wish) => {
                *wish = Wish::At(runtime.clone());
                true
            }
            None => false,
        });
        // Nobody is to be woken: it is polled again there.
        if asked {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

impl Future for Movable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Place::Here(task) = &mut self.0 {
            let (polled, wish) = Hearing::begin().hear(|| task.as_mut().poll(context));
            match (polled, wish) {
                (Poll::Ready(()), _) => {
                    self.0 = Place::Over;
                    return Poll::Ready(());
                }
                (Poll::Pending, Wish::Here) => return Poll::Pending,
                (Poll::Pending, Wish::At(runtime)) => self.move_to(&runtime),
            }
        }
        match &mut self.0 {
            Place::There(task) => match ready!(Pin::new(task).poll(context)) {
                Ok(()) => Poll::Ready(()),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // That runtime has ended.
                    Err(_) => Poll::Ready(()),
                },
            },
            Place::Here(_) | Place::Over => Poll::Ready(()),
        }
    }
}

impl Movable {
    fn move_to(&mut self, runtime: &Handle) {
        let task = Self(mem::replace(&mut self.0, Place::Over));
        self.0 = Place::There(AbortOnDropHandle::new(runtime.spawn(task)));
    }
}

/// Hears what a task says while it is polled. A task may poll another one itself.
struct Hearing {
    outside: Option<Wish>,
}

impl Hearing {
    fn begin() -> Self {
        Self {
            outside: POLLED.replace(Some(Wish::Here)),
        }
    }

    fn hear<T>(self, poll: impl FnOnce() -> T) -> (T, Wish) {
        let polled = poll();
        let wish = POLLED.with_borrow_mut(|wish| wish.replace(Wish::Here));
        (polled, wish.unwrap_or(Wish::Here))
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        POLLED.set(self.outside.take());
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use futures_util::FutureExt;
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    use super::*;

    /// Elsewhere.
    fn other() -> Runtime {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).build().unwrap()
    }

    fn thread() -> ThreadId {
        std::thread::current().id()
    }

    #[test]
    fn it_goes_on_where_it_wants_to_and_its_owner_sees_the_end() {
        let (here, there) = (other(), other());
        let place = there.handle().clone();
        let (tell, told) = oneshot::channel();
        let task = movable(async move {
            let before = thread();
            go_on_in(&place).await;
            let after = thread();
            // Being there, it stays.
            go_on_in(&place).await;
            tell.send((before, after, thread())).unwrap();
        });
        let running = here.spawn(task);
        here.block_on(running).unwrap();
        let (before, after, last) = told.now_or_never().unwrap().unwrap();
        assert_ne!(before, after);
        assert_eq!(after, last);
    }

    #[test]
    fn who_may_not_move_stays() {
        let (here, there) = (other(), other());
        here.block_on(async {
            let before = thread();
            go_on_in(there.handle()).await;
            assert_eq!(thread(), before);
        });
    }

    #[test]
    fn its_owner_ends_it_wherever_it_is() {
        let (here, there) = (other(), other());
        let place = there.handle().clone();
        let (arrived, is_there) = oneshot::channel();
        let (kept, dropped) = oneshot::channel::<()>();
        here.block_on(async {
            let mut tasks = JoinSet::new();
            tasks.spawn(movable(async move {
                let _kept = kept;
                go_on_in(&place).await;
                arrived.send(()).unwrap();
                std::future::pending::<()>().await;
            }));
            is_there.await.unwrap();
            tasks.shutdown().await;
            assert!(dropped.await.is_err());
        });
    }

    #[test]
    fn its_panic_is_its_owners_to_see() {
        let (here, there) = (other(), other());
        let place = there.handle().clone();
        let task = movable(async move {
            go_on_in(&place).await;
            panic!("a test's panic");
        });
        let running = here.spawn(task);
        let ended = here.block_on(running);
        assert!(ended.unwrap_err().is_panic());
    }

    #[test]
    fn the_end_of_the_runtime_that_it_is_in_is_its_own() {
        let (here, there) = (other(), other());
        let place = there.handle().clone();
        let (arrived, is_there) = oneshot::channel();
        let task = movable(async move {
            go_on_in(&place).await;
            arrived.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        let ended = here.spawn(task);
        here.block_on(is_there).unwrap();
        there.shutdown_background();
        here.block_on(ended).unwrap();
    }

    #[test]
    fn one_within_another_moves_alone() {
        let (here, there) = (other(), other());
        let place = there.handle().clone();
        let (tell, told) = oneshot::channel();
        let outer = movable(async move {
            let before = thread();
            let inner = movable(async move {
                go_on_in(&place).await;
                assert_ne!(thread(), before);
            });
            inner.await;
            tell.send((before, thread())).unwrap();
        });
        let running = here.spawn(outer);
        here.block_on(running).unwrap();
        let (before, after) = told.now_or_never().unwrap().unwrap();
        assert_eq!(before, after);
    }
}
