//! A server's part in a fleet, as the rest of the server sees it.

use std::{sync::Arc, time::Duration};

use hashfinder_fleet::{
    CallId, LeaderSettings, MOST_QUERY_BYTES, RemoteSearch, ServerId, Term, query_bytes,
};
use hashfinder_search::{Checkpoint, Client, Query};
use tokio::{
    sync::{
        Mutex,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        oneshot, watch,
    },
    time::{sleep, timeout},
};

use crate::{
    broker::{Broker, BrokerOptions, ConnectError, Role},
    call::{Call, FleetSearch, FleetStopper, OnRelease, Request},
    id::server_id,
    key::Key,
    member::Member,
    shared::{FleetMetrics, Shared, lock},
};

/// Pause before another attempt to reach a broker, or to open the bucket there.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Time that a server has to leave its fleet.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A server's part in a fleet: it passes searches to the leader and, if it is elected, leads.
/// Clones share it. When the last one and all its searches are dropped, the server leaves the
/// fleet.
#[derive(Clone)]
pub struct Fleet {
    id: ServerId,
    shared: Arc<Shared>,
    requests: UnboundedSender<Request>,
}

impl Fleet {
    /// Joins the fleet at a broker. If the broker cannot be reached now, it is tried again and
    /// again in the background.
    ///
    /// Dropping the future ends the attempt.
    ///
    /// # Errors
    ///
    /// If the options, the broker or a file is wrong, so that trying again does not help.
    pub async fn join(
        options: BrokerOptions,
        settings: LeaderSettings,
    ) -> Result<Fleet, ConnectError> {
        let id: ServerId = server_id().into();
        let connected = match connect(&options, &id).await {
            Ok(connected) => Some(connected),
            Err(error) if error.is_temporary() => {
                tracing::warn!("{error}; trying again");
                None
            }
            Err(error) => return Err(error),
        };
        let (requests, to_do) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new());
        let fleet = Fleet {
            id: Arc::clone(&id),
            shared: Arc::clone(&shared),
            requests,
        };
        tokio::spawn(async move {
            take_part(id, options, connected, shared, settings, to_do).await;
        });
        Ok(fleet)
    }

    /// Whether agents would work on a search now.
    #[must_use]
    pub fn has_agents(&self) -> bool {
        self.shared.has_agents()
    }

    /// Whether a query is small enough for messages to agents.
    #[must_use]
    pub fn takes(&self, query: &Query) -> bool {
        query_bytes(query) <= MOST_QUERY_BYTES
    }

    /// Passes a search to the fleet. `query` must be one that it [takes](Self::takes), and
    /// the one that the checkpoint belongs to.
    ///
    /// `on_release` is called once, when the search has ended, or was stopped or dropped, *and* the
    /// leader has recalled its leases, or its call has expired at the leader.
    pub fn search(
        &self,
        client: Client,
        query: Query,
        checkpoint: Checkpoint,
        on_release: OnRelease,
    ) -> FleetSearch {
        let id: CallId = format!("{:032x}", fastrand::u128(..)).into();
        let now = self.shared.now();
        let search = RemoteSearch::new(Arc::clone(&id), client, query, checkpoint, now);
        let call = Arc::new(Call::new(Arc::clone(&id), search, on_release));
        let mut calls = lock(&self.shared.calls);
        calls.insert(Arc::clone(&id), Arc::clone(&call));
        drop(calls);
        if self.requests.send(Request::Due(id)).is_err() {
            // The runtime is shutting down.
            call.change(RemoteSearch::strand);
        }
        FleetSearch(FleetStopper {
            call,
            calls: Arc::clone(&self.shared.calls),
            requests: self.requests.clone(),
            started: self.shared.started,
        })
    }

    /// Returns the id of this server.
    pub(crate) fn id(&self) -> ServerId {
        Arc::clone(&self.id)
    }

    /// Returns the connection, once there is one.
    pub(crate) fn broker(&self) -> watch::Receiver<Option<Broker>> {
        self.shared.broker.subscribe()
    }

    /// Returns the term in which this server leads, while it does.
    pub(crate) fn leads(&self) -> watch::Receiver<Option<Term>> {
        self.shared.leads.subscribe()
    }

    /// Returns what this server knows of its fleet.
    #[must_use]
    pub fn metrics(&self) -> FleetMetrics {
        let calls = lock(&self.shared.calls).len();
        let metrics = self.shared.lock().metrics.clone();
        FleetMetrics { calls, ..metrics }
    }

    /// Leaves the fleet. If this server leads, another one does within a second.
    ///
    /// Dropping the future does not stop this.
    pub async fn leave(&self) {
        let (left, has_left) = oneshot::channel();
        if self.requests.send(Request::Leave(left)).is_ok() {
            let _ = timeout(LEAVE_TIMEOUT, has_left).await;
        }
    }
}

/// Connects to a broker, and opens the key.
async fn connect(options: &BrokerOptions, id: &str) -> Result<(Broker, Key), ConnectError> {
    let broker = Broker::connect(options, Role::Server(id)).await?;
    let key = Key::open(&broker).await?;
    Ok((broker, key))
}

/// Takes part in a fleet until all handles are dropped.
async fn take_part(
    id: ServerId,
    options: BrokerOptions,
    connected: Option<(Broker, Key)>,
    shared: Arc<Shared>,
    settings: LeaderSettings,
    mut requests: UnboundedReceiver<Request>,
) {
    let connected = match connected {
        Some(connected) => Some(connected),
        None => connect_at_last(&options, &id, &mut requests).await,
    };
    let Some((broker, key)) = connected else {
        return;
    };
    tracing::info!(server = %id, broker = %broker.address, pool = %broker.address.pool(),
        "part of the fleet");
    shared.broker.send_replace(Some(broker.clone()));
    // A panic in the task must not take the requests along.
    let requests = Arc::new(Mutex::new(requests));
    loop {
        let member = Member::new(
            Arc::clone(&id),
            Arc::clone(&shared),
            broker.clone(),
            key.clone(),
            settings,
        );
        let requests = Arc::clone(&requests);
        let run = tokio::spawn(async move { member.run(&mut *requests.lock().await).await });
        let ended = run.await;
        shared.leads.send_replace(None);
        match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!("this server cannot be part of the fleet: {error}"),
            Err(error) if error.is_panic() => {
                tracing::error!("this server's part in the fleet has panicked; it begins again");
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
        shared.strand_all();
        sleep(RETRY_PAUSE).await;
    }
}

/// Connects to a broker, however long that takes. Returns `None` once all handles are dropped.
async fn connect_at_last(
    options: &BrokerOptions,
    id: &str,
    requests: &mut UnboundedReceiver<Request>,
) -> Option<(Broker, Key)> {
    loop {
        let attempt = async {
            sleep(RETRY_PAUSE).await;
            connect(options, id).await
        };
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                connected = &mut attempt => match connected {
                    Ok(connected) => return Some(connected),
                    Err(error) => {
                        tracing::warn!("{error}; trying again");
                        break;
                    }
                },
                // A request cannot concern a fleet yet.
                request = requests.recv() => match request? {
                    Request::Leave(left) => {
                        let _ = left.send(());
                    }
                    Request::Due(_) | Request::Ended(_) => {}
                },
            }
        }
    }
}
