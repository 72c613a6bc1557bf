//! `promote`: hands the wire over.

use paceline::{SessionId, SessionInfo};

use crate::{
    args::Promote,
    document::{Promoted, document, short},
    failure::Failure,
    group::{self, Absent},
    settings::Settings,
    ui::Ui,
};

/// Asks the primary to hand over, and says who leads then.
pub async fn promote(settings: &Settings, promote: Promote, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline promote", Absent::Fail, ui).await?;
    let group = joined.session.group();
    let to = match promote.session {
        Some(wanted) => Some(find(&group::answer(settings, group.sessions()).await?, &wanted)?),
        None => None,
    };
    group::answer(settings, group.promote(to)).await?;
    // Answered by the next primary: after this it leads.
    let sessions = group::answer(settings, group.sessions()).await?;
    let epoch = joined.lead().map_or(0, |lead| lead.epoch.0);
    let primary = sessions.first().map(|info| info.member.clone());
    joined.leave().await;
    let Some(primary) = primary else { return Err(Failure::failed("nobody leads after the handover")) };
    ui.note(&format!(
        "{} {}, process {}, leads epoch {epoch}",
        short(primary.session),
        primary.label,
        primary.pid
    ));
    if !ui.json {
        return Ok(());
    }
    let (group, primary) = (settings.group.to_string(), primary.session.to_string());
    ui.document(&document(Promoted { group, epoch, primary }))
}

/// The session whose id begins or ends so.
pub fn find(sessions: &[SessionInfo], wanted: &str) -> Result<SessionId, Failure> {
    let fits = |info: &&SessionInfo| {
        let id = info.member.session.to_string();
        !wanted.is_empty() && (id.starts_with(wanted) || id.ends_with(wanted))
    };
    let found: Vec<SessionId> = sessions.iter().filter(fits).map(|info| info.member.session).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(Failure::Refused(format!("no session has an id that begins or ends with {wanted:?}"))),
        _ => Err(Failure::Refused(format!("{} sessions fit {wanted:?}; give more of the id", found.len()))),
    }
}
