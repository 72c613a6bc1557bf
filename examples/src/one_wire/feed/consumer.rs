//! One connected consumer.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Error, Message},
};

use super::store::{Opening, Seat};

/// Between two pings.
const PING_EVERY: Duration = Duration::from_millis(250);

/// A consumer that was not heard of for so long is dropped: four pings unanswered.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);

/// Serves a consumer until it leaves, fails or falls silent; its seat is free when this returns.
pub(super) async fn serve(socket: WebSocketStream<TcpStream>, seat: Seat) {
    let (sink, mut stream) = socket.split();
    let heard = Mutex::new(Instant::now());
    let listen = async {
        while let Some(Ok(message)) = stream.next().await {
            *heard.lock() = Instant::now();
            if message.is_close() {
                return;
            }
        }
    };
    let watch = async {
        loop {
            let limit = *heard.lock() + SILENCE_LIMIT;
            if Instant::now() >= limit {
                return;
            }
            tokio::time::sleep_until(limit).await;
        }
    };
    tokio::select! {
        () = listen => {}
        // Fails with the connection, which ends it as well as anything the consumer could say.
        _ = send(sink, &seat) => {}
        () = watch => seat.fell_silent(),
    }
}

async fn send<S>(mut sink: S, seat: &Seat) -> Result<(), Error>
where
    S: futures_util::Sink<Message, Error = Error> + Unpin,
{
    let mut latest = seat.store.latest();
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Opening { texts, upto: mut cursor } = seat.opening();
    for text in texts {
        sink.feed(Message::Text(text)).await?;
    }
    sink.flush().await?;
    loop {
        let Opening { texts, upto } = seat.store.after(cursor);
        cursor = cursor.max(upto);
        if !texts.is_empty() {
            for text in texts {
                sink.feed(Message::Text(text)).await?;
            }
            // A long replay must not make a consumer silent that has nothing to answer.
            if pings.tick().now_or_never().is_some() {
                sink.feed(Message::Ping(Bytes::new())).await?;
            }
            sink.flush().await?;
            continue;
        }
        tokio::select! {
            biased;
            _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
            changed = latest.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
